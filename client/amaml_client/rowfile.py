"""Rows of a task as files: JSON ({"x": [[…]], "y": […]}), or CSV with a header."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from amaml_client.errors import RowFileError


def read_rows(path: str | Path, *, targets: int = 1, inputs: int | None = None, named: bool = False) -> dict[str, Any]:
    """{"x": rows} and, where the file has them, {"y": rows}, as the API takes them.

    JSON holds just that. Of a CSV the columns called y, or y1, y2, …, are targets; where none is, the last `targets` are,
    or, with `inputs` given, those after so many inputs, if there are any. `named`: the only other column names an input a
    point, as items of ratings are given. Raises RowFileError.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RowFileError(f"{name} can't be read: {error}") from error
    if Path(path).suffix.lower() == ".json":
        return _json(name, text)
    return _csv(name, text, targets, inputs, named)


def _json(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RowFileError(f"{name} is no JSON: {error}") from error
    if isinstance(found, dict) and "x" in found and set(found) <= {"x", "y"}:
        return found
    raise RowFileError(f'{name} must hold one object {{"x": [[…], …], "y": [[…], …]}}; a query needs no y')


def _csv(name: str, text: str, targets: int, inputs: int | None, named: bool) -> dict[str, Any]:
    lines = csv.reader(text.splitlines(), strict=True)
    try:
        header = [column.strip() for column in next(lines, [])]
        rows = [(lines.line_num, row) for row in lines if row]
    except csv.Error as error:
        raise RowFileError(f"{name}:{lines.line_num}: no CSV: {error}") from error
    if not rows:
        raise RowFileError(f"{name} has no rows: give a header, then a row a point")
    for number, row in rows:
        if len(row) != len(header):
            raise RowFileError(f"{name}:{number}: {len(row)} values under {len(header)} names: give one for each")
    marked = [
        index for index, column in enumerate(header) if column == "y" or (column[:1] == "y" and column[1:].isdigit())
    ]
    unmarked = range(max(0, len(header) - targets) if inputs is None else inputs, len(header))
    y = marked or list(unmarked)
    x = [index for index in range(len(header)) if index not in y]
    if not x or (named and len(x) != 1):
        raise RowFileError(
            f"{name}: {len(x)} columns are left for inputs, beside targets: {'one' if named else 'some'} must be"
        )
    found = [row[x[0]].strip() if named else _numbers(name, number, row, x) for number, row in rows]
    return {"x": found, **({"y": [_numbers(name, number, row, y) for number, row in rows]} if y else {})}


def _numbers(name: str, line: int, row: list[str], columns: list[int]) -> list[float]:
    for column in columns:
        if not _is_number(row[column]):
            raise RowFileError(f"{name}:{line}: {row[column][:80]!r} is no finite number")
    return [float(row[column]) for column in columns]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
