"""What an uploaded file is, told from its first bytes alone, and which families read it. Imports neither torch nor numpy.

This is the first wall: what passes it is still untrusted, and is read to its end only by `worker.datasets.validator`.
"""

from __future__ import annotations

import codecs
from typing import Final, Literal, NamedTuple

from amaml.ratings_file import ITEM_NAMES, USER_NAMES, BadLine, is_number, split_csv

Format = Literal["movielens-100k", "movielens-1m", "recbole", "jester-1", "csv", "parquet", "safetensors"]

HEAD_BYTES: Final = 512 * 1024
"""So much of a file tells its format: room for the header of the widest table that is read."""
MAX_SAFETENSORS_HEADER: Final = 1 << 20
_JESTER_FIELDS: Final = 101

READ_BY: Final[dict[str, tuple[Format, ...]]] = {
    "ratings": ("movielens-100k", "movielens-1m", "recbole", "jester-1", "csv"),
    "table": ("csv", "parquet"),
    "images": ("safetensors",),
}
"""Family → the formats that it reads; of CSV, `ratings` reads only those whose header names user, item and rating."""

_ARCHIVE: Final = "unpack it and send the file inside"
_CSV: Final = "save it as CSV or Parquet and send that"
_REFUSED: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"PK\x03\x04", "a zip archive (or .xlsx, .npz, .pt, which are such)", f"{_ARCHIVE}; sheets as CSV, arrays as safetensors"),
    (b"PK\x05\x06", "an empty zip archive", _ARCHIVE),
    (b"\x1f\x8b", "compressed by gzip", _ARCHIVE),
    (b"BZh", "compressed by bzip2", _ARCHIVE),
    (b"\xfd7zXZ\x00", "compressed by xz", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _ARCHIVE),
    (b"\x04\x22\x4d\x18", "compressed by lz4", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _ARCHIVE),
    (b"Rar!\x1a\x07", "a rar archive", _ARCHIVE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel sheet (.xls)", "save it as CSV and send that"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "save it as safetensors and send that"),
    (b"\x89HDF\r\n", "an HDF5 file", _CSV),
    (b"ARROW1", "an Arrow file", "save it as Parquet and send that"),
    (b"SQLite format 3\x00", "an SQLite database", _CSV),
    (b"PARE", "an encrypted Parquet file", "save it without encryption"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"%PDF", "a PDF document", _CSV),
)  # fmt: skip


class Detected(NamedTuple):
    format: Format
    families: tuple[str, ...]
    """Those that can read it."""


def detect(head: bytes, *, whole: bool) -> Detected:
    """The format of the file that begins with `head`: its first HEAD_BYTES, or, if it has fewer, `whole` of it.

    Raises BadLine for what is none of the formats, with a sentence that says what it is instead and what to do.
    """
    if not head.strip():
        raise BadLine(1, "the file is empty")
    for magic, what, remedy in _REFUSED:
        if head.startswith(magic):
            raise BadLine(0, f"this is {what}: {remedy}")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise BadLine(0, f"this is a Python pickle, which could run code: {_CSV}, or safetensors for images")
    if head[257:262] == b"ustar":
        raise BadLine(0, f"this is a tar archive: {_ARCHIVE}")
    if head.startswith(b"PAR1"):
        return Detected("parquet", ("table",))
    if head[8:9] == b"{" and not _is_text(head[:8]):
        length = int.from_bytes(head[:8], "little")
        if length > MAX_SAFETENSORS_HEADER:
            raise BadLine(
                0,
                f"its safetensors header claims {length} bytes, at most {MAX_SAFETENSORS_HEADER} are read: "
                "save images and labels alone, by safetensors",
            )
        return Detected("safetensors", ("images",))
    return _text_format(*_first_line(head, whole))


def mismatch(found: Format, wanted: str) -> BadLine:
    """The error of a file that is of another format than its sender said."""
    return BadLine(1, f"this is {found}, not {wanted}: send format={found} or format=auto")


def _first_line(head: bytes, whole: bool) -> tuple[int, str]:
    """The first line that isn't blank, and its number; raises BadLine where the head isn't text."""
    nul = head.find(b"\x00")
    if nul >= 0:
        line = head.count(b"\n", 0, nul) + 1
        raise BadLine(line, "there is a NUL byte: this is no text file, nor Parquet, nor safetensors")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=whole)
    except UnicodeDecodeError as problem:
        line = head.count(b"\n", 0, problem.start) + 1
        raise BadLine(line, f"byte {problem.start + 1} of the file is not UTF-8: save the file as UTF-8") from None
    lines = text.split("\n", 64)
    number = next((index for index, line in enumerate(lines) if line.strip()), None)
    if number is None:
        raise BadLine(1, "the file begins with nothing but blank lines: remove them")
    if not whole and number == len(lines) - 1:
        raise BadLine(
            number + 1, f"the line is longer than {HEAD_BYTES} bytes: a text file needs a line a row, and few columns"
        )
    return number + 1, lines[number].strip("\r")


def _text_format(number: int, line: str) -> Detected:
    fields = line.split("::")
    if len(fields) == 4 and is_number(fields[2]):
        return Detected("movielens-1m", ("ratings",))
    fields = line.split("\t")
    if len(fields) in (3, 4) and is_number(fields[2]):
        return Detected("movielens-100k", ("ratings",))
    if len(fields) >= 3 and all(":" in field for field in fields):
        return Detected("recbole", ("ratings",))
    fields = split_csv(line)
    if len(fields) == _JESTER_FIELDS and all(is_number(field) for field in fields):
        return Detected("jester-1", ("ratings",))
    widest = max((line.split(mark) for mark in ",;\t"), key=len)
    if len(widest) < 2:
        raise BadLine(
            number,
            f"{line[:60]!r} starts no file that is read here: expected user, item, rating with tabs between "
            "(MovieLens-100K), user::item::rating::time (MovieLens-1M), 101 numbers with commas (Jester-1), "
            "a CSV header, Parquet or safetensors",
        )
    if all(is_number(field) for field in widest):
        raise BadLine(number, "the first line is all numbers: put a header with the columns' names before it")
    names = [name.strip().lower() for name in fields]
    wanted = (USER_NAMES, ITEM_NAMES, ("rating",))
    is_ratings = all(sum(name in among for name in names) == 1 for among in wanted)
    return Detected("csv", ("ratings", "table") if is_ratings else ("table",))


def _is_text(some: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in some)
