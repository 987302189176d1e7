"""Reads published ratings files line by line: user, item and rating. Imports no torch.

The first line alone determines the format (`format_of`):
- `movielens-100k`: MovieLens-100K's `u.data`: user, item, rating, time, with tabs between.
- `movielens-1m`: MovieLens-1M's `ratings.dat`: user::item::rating::time.
- `recbole`: an `.inter` file: tabs, and a header like `user_id:token  item_id:token  rating:float`.
- `jester-1`: Jester data set 1 as CSV, a row for each user: the count of rated jokes, then 100 ratings in −10…10, or 99 for none.
- `csv`: a header that names user, item and rating (such as MovieLens' `userId,movieId,rating`); other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from amaml.families.text import is_number, split_csv
from amaml.families.upload import BadLine

MAX_LINE_BYTES: Final = 64 * 1024
MAX_USERS: Final = 500_000
_READ_BYTES: Final = 1 << 20
_JESTER_JOKES: Final = 100
_JESTER_UNRATED: Final = 99.0
_WANTED: Final = (
    ("user", "user_id", "userid"),
    ("item", "item_id", "itemid", "movie_id", "movieid"),
    ("rating",),
)
"""The names of each required column of a header, any one of which may be used."""


class Rating(NamedTuple):
    user: str
    item: str
    rating: float


class Summary(NamedTuple):
    format: str
    rows: int
    """The number of ratings in the file."""
    tasks: int
    """The number of users with at least one rating."""
    errors: list[BadLine]
    """The first errors in the order of the file; empty for a valid one."""


def read(path: Path) -> Iterator[Rating]:
    """Yields the file's ratings in order. Raises BadLine at the first invalid line."""
    with path.open("rb") as file:
        _, records = _records(iter(lambda: file.read(_READ_BYTES), b""))
        for record in records:
            if isinstance(record, BadLine):
                raise record
            yield from record


def summarize(chunks: Iterable[bytes], max_errors: int = 20) -> Summary:
    """The format, counts and first errors of the file whose bytes are `chunks`, which it reads one by one."""
    try:
        name, records = _records(chunks)
    except BadLine as problem:
        return Summary("unknown", 0, 0, [problem])
    rows = 0
    users: set[str] = set()
    errors: list[BadLine] = []
    for record in records:
        if isinstance(record, BadLine):
            errors.append(record)
            if len(errors) == max_errors:
                break
            continue
        rows += len(record)
        users.update(rating.user for rating in record)
        if len(users) > MAX_USERS:
            errors.append(BadLine(0, f"more than {MAX_USERS} users: split the file"))
            break
    if rows == 0 and not errors:
        errors.append(BadLine(1, f"the file is {name} but holds no rating"))
    return Summary(name, rows, len(users), errors)


# Each line gives a list of ratings (a user's whole row in jester-1) or an error.
_Record = list[Rating] | BadLine
_Parse = Callable[[int, str], list[Rating]]


def _records(chunks: Iterable[bytes]) -> tuple[str, Iterator[_Record]]:
    """The format's name and the records of the lines. Raises BadLine if the first line has no known format."""
    lines = _lines(chunks)
    first = next(lines, None)
    if first is None:
        raise BadLine(1, "the file is empty")
    if isinstance(first, BadLine):
        raise first
    name, parse, has_header = _opened(*first)

    def records() -> Iterator[_Record]:
        if not has_header:
            yield _parsed(parse, first)
        for line in lines:
            yield line if isinstance(line, BadLine) else _parsed(parse, line)

    return name, records()


def _parsed(parse: _Parse, line: tuple[int, str]) -> _Record:
    try:
        return parse(*line)
    except BadLine as problem:
        return problem


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, str] | BadLine]:
    """Yields the lines that aren't blank, with their numbers. It stops at a line that is too long, since that may never end."""
    number, rest = 0, b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for raw in whole:
            number += 1
            if raw.strip():
                yield _text(number, raw)
        if len(rest) > MAX_LINE_BYTES:
            yield BadLine(number + 1, f"longer than {MAX_LINE_BYTES} bytes: a ratings file has one short line a rating")
            return
    if rest.strip():
        yield _text(number + 1, rest)


def _text(number: int, raw: bytes) -> tuple[int, str] | BadLine:
    if len(raw) > MAX_LINE_BYTES:
        return BadLine(number, f"longer than {MAX_LINE_BYTES} bytes: a ratings file has one short line a rating")
    if b"\x00" in raw:
        return BadLine(number, "there is a NUL byte: save the file as plain text")
    try:
        return number, raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
    except UnicodeDecodeError as problem:
        return BadLine(number, f"byte {problem.start + 1} is not UTF-8: save the file as UTF-8")


def format_of(line: str) -> str | None:
    """The format of the file that begins with this line; None if it isn't a ratings file."""
    fields = line.split("::")
    if len(fields) == 4 and is_number(fields[2]):
        return "movielens-1m"
    fields = line.split("\t")
    if len(fields) in (3, 4) and is_number(fields[2]):
        return "movielens-100k"
    if len(fields) >= 3 and all(":" in field for field in fields):
        return "recbole"
    fields = split_csv(line)
    if len(fields) == _JESTER_JOKES + 1 and all(is_number(field) for field in fields):
        return "jester-1"
    names = [name.strip().lower() for name in fields]
    return "csv" if all(sum(name in among for name in names) == 1 for among in _WANTED) else None


def _opened(number: int, line: str) -> tuple[str, _Parse, bool]:
    """The format, the parser of a line, and whether this first line is a header. Raises BadLine for an unknown format."""
    name = format_of(line)
    match name:
        case "movielens-1m":
            return name, _separated("::", 4, 4), False
        case "movielens-100k":
            return name, _separated("\t", 3, 4), False
        case "jester-1":
            return name, _jester, False
    split = _by_tabs if name == "recbole" or (name is None and "\t" in line) else split_csv
    fields = split(line)
    if name is not None or len(fields) >= 3 or (len(fields) == 2 and ":" in fields[0]):
        columns = _columns(number, [field.partition(":")[0] for field in fields])
        if name is not None:
            return name, _named(columns, len(fields), split), True
    raise BadLine(
        number,
        f"{_shown(line)} starts no ratings file: expected user, item, rating with tabs between (MovieLens-100K), "
        "user::item::rating::time (MovieLens-1M), 101 numbers with commas (Jester-1), or a header with "
        "user, item and rating (CSV, .inter)",
    )


def _by_tabs(line: str) -> list[str]:
    return line.split("\t")


def _columns(number: int, header: list[str]) -> tuple[int, int, int]:
    """The positions of user, item and rating in the header. Raises BadLine if one is missing or ambiguous."""
    names = [name.strip().lower() for name in header]
    for among in _WANTED:
        if sum(name in among for name in names) != 1:
            raise BadLine(number, f"the header {_shown(','.join(header))} needs one {among[0]} column")
    user, item, rating = (next(index for index, name in enumerate(names) if name in among) for among in _WANTED)
    return user, item, rating


def _separated(separator: str, at_least: int, at_most: int) -> _Parse:
    def parse(number: int, line: str) -> list[Rating]:
        fields = line.split(separator)
        if not at_least <= len(fields) <= at_most:
            raise BadLine(number, f"{len(fields)} fields, expected user, item, rating, time: {_shown(line)}")
        return [_rating(number, fields[0], fields[1], fields[2])]

    return parse


def _named(columns: tuple[int, int, int], width: int, split: Callable[[str], list[str]]) -> _Parse:
    user, item, rating = columns

    def parse(number: int, line: str) -> list[Rating]:
        fields = split(line)
        if len(fields) != width:
            raise BadLine(number, f"{len(fields)} fields where the header has {width}: {_shown(line)}")
        return [_rating(number, fields[user], fields[item], fields[rating])]

    return parse


def _jester(number: int, line: str) -> list[Rating]:
    fields = line.split(",")
    if len(fields) != _JESTER_JOKES + 1:
        raise BadLine(number, f"{len(fields)} fields, expected the count of rated jokes and {_JESTER_JOKES} ratings")
    values = [_number(number, field) for field in fields]
    for joke, value in enumerate(values[1:], start=1):
        if value != _JESTER_UNRATED and not -10 <= value <= 10:
            raise BadLine(number, f"joke {joke} is rated {value:g}, expected −10…10, or 99 for not rated")
    rated = [
        Rating(str(number), str(joke), value)
        for joke, value in enumerate(values[1:], start=1)
        if value != _JESTER_UNRATED
    ]
    if values[0] != len(rated):
        raise BadLine(number, f"the first column says {values[0]:g} jokes are rated, but {len(rated)} are")
    return rated


def _rating(number: int, user: str, item: str, rating: str) -> Rating:
    user, item = user.strip(), item.strip()
    if not user or not item:
        raise BadLine(number, f"the {'user' if not user else 'item'} is empty")
    return Rating(user, item, _number(number, rating))


def _number(number: int, text: str) -> float:
    if not is_number(text):
        raise BadLine(number, f"the rating {_shown(text)} is not a finite number")
    return float(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
