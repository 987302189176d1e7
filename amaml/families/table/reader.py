"""Detects and checks uploaded tables. Imports no torch, and pyarrow only to read a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from amaml.dataset_report import MAX_ERRORS, ColumnReport, DatasetReport, line_errors
from amaml.families.text import is_number, text_errors
from amaml.families.upload import BadLine, Head

TAKES_THE_REST: Final = True
FORMATS: Final = {"csv": "a CSV header", "parquet": "Parquet"}


def accepts(head: Head) -> str | None:
    if head.data.startswith(b"PAR1"):
        return "parquet"
    if head.line is None:
        return None
    widest = max((head.line.text.split(mark) for mark in ",;\t"), key=len)
    if len(widest) < 2:
        return None
    if all(is_number(field) for field in widest):
        raise BadLine(head.line.number, "the first line is all numbers: put a header with the columns' names before it")
    return "csv"


def validate(path: Path, format_: str) -> DatasetReport:
    from amaml.families.table import file  # noqa: PLC0415 - its native libraries take time and memory

    errors = list(text_errors(path)) if format_ == "csv" else []
    if errors:
        return DatasetReport(rows=0, errors=line_errors(errors))
    found = file.inspect(path, max_errors=MAX_ERRORS)
    if found.errors:
        return DatasetReport(rows=found.rows, errors=line_errors(found.errors))
    columns = [ColumnReport(name=one.name, type=one.type, missing=one.missing) for one in found.columns]
    return DatasetReport(rows=found.rows, columns=columns)
