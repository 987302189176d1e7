"""Converts a table's rows into arrays: numbers unchanged, text one-hot or as classes. Missing and unusable values are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amaml.families.scaling import Array
from amaml.families.table import file
from amaml.families.table.spec import TableSpec
from amaml.families.upload import BadLine

Texts = NDArray[np.object_]

MAX_VALUES: Final = 100
"""The largest number of values of a text input or of classes of a target; columns with more are rather names than categories."""
_PARTS: Final = ("train", "validation", "test")
_FIT_TO_BE: Final = {"integer": "number", "number": "number", "boolean": "number", "text": "text"}


@dataclass(frozen=True)
class Rows:
    tasks: Texts
    """The task of each row [n]."""
    parts: Texts | None
    """The part of each row [n]: train, validation or test, the same in all rows of a task. None where no column names it."""
    x: Array
    """The raw inputs [n, d]; one-hot columns hold 0 or 1."""
    inputs: list[str]
    """The name of each column of x: a column of the table, or `column=value`."""
    one_hot: list[bool]
    """Whether each column of x is one-hot."""
    y: Array
    """The raw targets [n, o]; one-hot for classification."""
    classes: list[str] | None
    """The classes of the target; None for regression."""


def read_rows(path: Path, spec: TableSpec) -> Rows:
    """The rows of the spec's columns of the file. Raises BadLine for an invalid file, or an unsuitable column or value."""
    report = file.inspect(path, max_errors=1)
    if report.errors:
        raise report.errors[0]
    types = {column.name: column.type for column in report.columns}
    for name in (spec.task, *spec.inputs, *spec.targets, *([spec.split] if spec.split else [])):
        if name not in types:
            shown = ", ".join(list(types)[:20]) + (", …" if len(types) > 20 else "")
            raise BadLine(0, f"there is no column {name!r}: the table has {shown}")
    for name in (*spec.inputs, *spec.targets):
        if types[name] not in _FIT_TO_BE:
            raise BadLine(
                0, f"column {name!r} holds {_WORDS[types[name]]}: leave it out, or turn it into numbers or text"
            )
    classifies = _classifies(spec, types)
    as_text = [name for name in spec.inputs if types[name] == "text"]
    as_numbers = [name for name in spec.inputs if types[name] != "text"]
    targets = [] if classifies else spec.targets
    beside = [spec.task, *([spec.split] if spec.split else []), *(spec.targets if classifies else []), *as_text]
    blocks = list(file.read(path, [*as_numbers, *targets], beside))
    numbers = np.concatenate([block.numbers for block in blocks])
    texts = {name: np.concatenate([block.texts[i] for block in blocks]) for i, name in enumerate(beside)}
    _refuse_missing(report.format, [*as_numbers, *targets], numbers, texts)
    columns: list[Array] = []
    inputs: list[str] = []
    for name in spec.inputs:
        if name in texts:
            values, hot = _one_hot(name, texts[name])
            inputs += [f"{name}={value}" for value in values]
            columns.append(hot)
        else:
            inputs.append(name)
            columns.append(numbers[:, [as_numbers.index(name)]])
    classes, y = None, numbers[:, len(as_numbers) :]
    if classifies:
        classes, y = _one_hot(spec.targets[0], texts[spec.targets[0]])
        if len(classes) < 2:
            raise BadLine(
                0, f"column {spec.targets[0]!r} holds one class alone, {classes[0]!r}: there is nothing to tell apart"
            )
    one_hot = [name in texts for name, column in zip(spec.inputs, columns, strict=True) for _ in range(column.shape[1])]
    parts = None if spec.split is None else _parts(texts[spec.task], texts[spec.split], spec, report.format)
    return Rows(texts[spec.task], parts, np.concatenate(columns, axis=1), inputs, one_hot, y, classes)


_WORDS: Final = {"empty": "no value at all", "other": "neither numbers nor text"}


def _classifies(spec: TableSpec, types: dict[str, file.Type]) -> bool:
    """Whether the target is a class: as the spec says, or else if it is text or boolean. Raises BadLine where it can't be."""
    kinds = [name for name in spec.targets if types[name] in ("text", "boolean")]
    if spec.classify is False:
        text = next((name for name in kinds if types[name] == "text"), None)
        if text is not None:
            raise BadLine(
                0, f"column {text!r} holds text, which can't be regressed: set family.classify to null or true"
            )
        return False
    if kinds and len(spec.targets) > 1:
        raise BadLine(
            0, f"column {kinds[0]!r} holds classes, and one column is classified: name it alone as family.targets"
        )
    return bool(spec.classify or kinds)


def _refuse_missing(format_: str, names: list[str], numbers: Array, texts: dict[str, Texts]) -> None:
    """Raises BadLine for the first row of the file in which one of the columns has no value."""
    columns = [(name, np.isnan(numbers[:, i])) for i, name in enumerate(names)]
    columns += [(name, np.array([not value for value in values], dtype=bool)) for name, values in texts.items()]
    missing = [(int(gaps.argmax()), name) for name, gaps in columns if gaps.any()]
    if missing:
        row, name = min(missing)
        raise _at(format_, row, f"column {name!r} has no value: fill it, or leave the row out")


def _at(format_: str, row: int, detail: str) -> BadLine:
    """The error of a row, counted from 0. The line of a CSV file is that with one line for the header and one for each row."""
    return BadLine(row + 2, detail) if format_ == "csv" else BadLine(row + 1, f"row {row + 1}: {detail}")


def _one_hot(name: str, values: Texts) -> tuple[list[str], Array]:
    """The different values in order (integers by size), and the rows in one-hot form [n, values]. Raises BadLine for too many."""
    found, index = np.unique(values.astype(str), return_inverse=True)
    if len(found) > MAX_VALUES:
        raise BadLine(
            0,
            f"column {name!r} holds {len(found)} different values, and at most {MAX_VALUES} are allowed: leave it out, or turn "
            "it into numbers",
        )
    order = np.array(sorted(range(len(found)), key=lambda i: _rank(str(found[i]))))
    place = np.empty(len(found), dtype=np.int64)
    place[order] = np.arange(len(found))
    return [str(found[i]) for i in order], np.eye(len(found))[place[index]]


def _rank(value: str) -> tuple[int, int, str]:
    whole = value.lstrip("-").isdecimal()
    return (0, int(value), value) if whole else (1, 0, value)


def _parts(tasks: Texts, given: Texts, spec: TableSpec, format_: str) -> Texts:
    """The parts of the rows in lower case. Raises BadLine for an unknown one, or for two parts of one task."""
    lower = np.array([value.lower() for value in given], dtype=object)
    seen: dict[str, str] = {}
    for row, (task, part) in enumerate(zip(tasks, lower, strict=True)):
        if part not in _PARTS:
            raise _at(format_, row, f"column {spec.split!r} says {given[row]!r}: it must say train, validation or test")
        if seen.setdefault(task, part) != part:
            raise _at(
                format_,
                row,
                f"column {spec.split!r} says {part} for task {task!r}, and {seen[task]} before: say one of them",
            )
    return lower
