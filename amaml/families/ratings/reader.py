"""Detects and checks uploaded files of ratings. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from amaml.dataset_report import MAX_ERRORS, DatasetReport, line_errors
from amaml.families.ratings.file import format_of, summarize
from amaml.families.text import text_errors
from amaml.families.upload import Head

FORMATS: Final = {
    "movielens-100k": "user, item, rating with tabs between (MovieLens-100K)",
    "movielens-1m": "user::item::rating::time (MovieLens-1M)",
    "recbole": "a header like user_id:token with tabs between (RecBole)",
    "jester-1": "101 numbers with commas (Jester-1)",
    "csv": "a CSV header that names user, item and rating",
}
_READ_BYTES: Final = 1 << 20


def accepts(head: Head) -> str | None:
    return None if head.line is None else format_of(head.line.text)


def validate(path: Path, format_: str) -> DatasetReport:  # noqa: ARG001 - the file itself says it
    errors = list(text_errors(path))
    if errors:
        return DatasetReport(rows=0, errors=line_errors(errors))
    with path.open("rb") as file:
        summary = summarize(iter(lambda: file.read(_READ_BYTES), b""), MAX_ERRORS)
    return DatasetReport(rows=summary.rows, tasks=summary.tasks, errors=line_errors(summary.errors))
