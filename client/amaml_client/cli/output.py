"""How the command speaks: tables and colours to a terminal, plain lines to a pipe, documents with --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from amaml_client import errors
from amaml_client.results import Job

AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]

ItemT = TypeVar("ItemT", bound=BaseModel)

console = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)

_EXIT_CODES: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    (
        (
            errors.JobEnded,
            errors.StudyIncomplete,
            errors.AdaptationFailed,
            errors.DatasetInvalid,
            errors.TimedOut,
            errors.ChecksumMismatch,
        ),
        1,
    ),
    ((errors.Unreachable, errors.ServerFailed, errors.UnexpectedAnswer), 3),
    ((errors.Refused, errors.Conflict, errors.NoInitialization), 4),
)
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "paused": "yellow"}
_BARS = "▁▂▃▄▅▆▇█"


def complain(error: Exception) -> int:
    """Says on standard error what went wrong, and gives the exit code for it: 2, usage, unless the list has it."""
    if "--json" in sys.argv:
        sentence = getattr(error, "format_message", error.__str__)()  # of a usage error: with the option's name
        document = error.document if isinstance(error, errors.Problem) else {"detail": sentence}
        print(json.dumps({"error": type(error).__name__, **document}, ensure_ascii=False), file=sys.stderr)  # noqa: T201
    else:
        stderr.print(Text(f"amaml: {error}"))
        if isinstance(error, errors.Unauthenticated):
            stderr.print("The key comes from AMAML_API_KEY, else from $AMAML_HOME/admin.key (default .amaml/).")
    return next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), 2)


def say(text: str) -> None:
    """A line on standard output, as it is."""
    if console.is_terminal:
        console.print(Text(_printable(text)))
    else:
        print(_printable(text), flush=True)  # noqa: T201 - rich would turn tabs into spaces


def emit(result: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """The answer as one JSON document."""
    print(document(result))  # noqa: T201 - a document, not a message


def answer(result: BaseModel | dict[str, Any], text: str, as_json: bool) -> None:
    """The answer as a document, or what it comes to as a line."""
    if as_json:
        emit(result)
    else:
        say(text)


def deleted(what: str, item_id: str, as_json: bool) -> None:
    answer({"id": item_id, "deleted": True}, f"{what} {item_id} is deleted", as_json)


def listing(
    found: Sequence[ItemT], columns: Sequence[str], row: Callable[[ItemT], Sequence[str | Text]], as_json: bool
) -> None:
    """The items as a document, or as a table with a row for each."""
    if as_json:
        emit(found)
    else:
        table(columns, [row(item) for item in found])


@contextmanager
def until_ctrl_c(what: str, item_id: str, command: str) -> Iterator[None]:
    """Ctrl-C in the block stops watching alone: says how to come back to what goes on, and exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        stderr.print(
            f"\nStopped watching; {what} {item_id} goes on. "
            f"`{command} watch {item_id}` comes back to it, `{command} cancel {item_id}` ends it.",
            markup=False,
        )
        raise typer.Exit(130) from None


def document(result: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> str:
    return json.dumps(_plain(result), ensure_ascii=False, indent=2)


def emit_line(result: BaseModel) -> None:
    """The answer as one line of JSON."""
    print(json.dumps(_plain(result), ensure_ascii=False), flush=True)  # noqa: T201 - a document, not a message


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """A table on a terminal; tab-separated lines with a head in a pipe."""
    if console.is_terminal:
        console.print(rich_table(columns, rows))
        return
    for row in (columns, *rows):
        say("\t".join(" ".join(str(cell).split()) for cell in row))


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, no_wrap=column == "id", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(_printable(cell)) for cell in row))
    return drawn


META_LOSS = "meta_loss"
"""The metric that is shown of every job; the others by the names that the server's answer gives."""
JOB_COLUMNS = ("id", "name", "state", "progress", "family", "method", META_LOSS, "age")


def job_row(job: Job) -> list[str | Text]:
    return [
        job.id,
        job.name,
        state_text(job),
        f"{job.progress.iteration}/{job.progress.iterations}",
        str(job.spec.get("family", {}).get("kind", "")),
        str(job.spec.get("method", {}).get("kind", "")),
        number(job.metrics.get(META_LOSS)),
        duration((datetime.now(UTC) - job.created_at).total_seconds()),
    ]


def state_text(job: Job) -> Text:
    return Text(job.state, style=_COLOURS.get(job.state, ""))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """3 s, 4 min, 5 h, 6 d."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The curve's shape in `width` characters or less: means of equal runs, from the least to the greatest."""
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [index * len(values) // width for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((mean - low) / span * len(_BARS)))] for mean in means)


def _printable(text: str) -> str:
    """Without what would steer the terminal: a job's name is anybody's text."""
    return "".join(character if character.isprintable() or character in "\t\n" else "�" for character in text)


def _plain(result: Any) -> Any:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(result, (list, tuple)):
        return [_plain(item) for item in result]
    return result
