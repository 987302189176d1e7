"""A format of its own: a first line that says so, then a spring's name, a time and a position a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amaml.dataset_report import DatasetReport, line_errors
from amaml.families.text import is_number
from amaml.families.upload import BadLine, Head

FIRST = "springs, version 1"
FORMATS = {"springs-1": f"{FIRST!r}"}


def accepts(head: Head) -> str | None:
    return "springs-1" if head.line is not None and head.line.text == FIRST else None


def validate(path: Path, format_: str) -> DatasetReport:
    found = list(rows(path))
    springs = {row[0] for row in found if not isinstance(row, BadLine)}
    return DatasetReport(
        rows=len(found), tasks=len(springs), errors=line_errors([row for row in found if isinstance(row, BadLine)])
    )


def rows(path: Path) -> Iterator[tuple[str, float, float] | BadLine]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            name, *values = line.split()
            if number > 1 and len(values) == 2 and all(map(is_number, values)):
                yield name, float(values[0]), float(values[1])
            elif number > 1:
                yield BadLine(number, "expected a name, a time and a position")
