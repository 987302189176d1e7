"""Expands a study's grid into cells: each is the base spec with one value of every axis inserted.

That is done to the JSON document: the base alone need not be a valid spec, and each cell becomes one."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice, product
from typing import Any, Final

from pydantic import ValidationError

from amaml.spec import JobSpec
from service.http import validation
from service.http.bodies import MAX_ERRORS
from service.http.problems import Problem, invalid
from service.studies.report.words import label
from service.studies.store import NewCell

MAX_CELLS: Final = 500
_POINTER: Final = re.compile(r"(?:/(?:[^~/]|~[01])+)+")
_MAX_NAME: Final = 200

Errors = list[dict[str, str]]


class Misplaced(Exception):
    """The pointer names no place in the base spec."""


def expand(name: str, base: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[NewCell]:
    """All cells, in an order in which the last axis changes fastest. Raises the 422 problem, with cells and pointers."""
    errors = list(_axis_errors(grid))
    count = math.prod(len(values) for values in grid.values())
    if not errors and count > MAX_CELLS:
        errors = [
            {
                "pointer": "/grid",
                "detail": f"{count} cells are too many: at most {MAX_CELLS} are allowed; drop some values",
            }
        ]
    if errors:
        raise invalid(errors)
    cells: list[NewCell] = []
    found: dict[tuple[str, str], list[str]] = {}
    for indices in product(*(range(len(values)) for values in grid.values())):
        coordinates = {key: values[index] for (key, values), index in zip(grid.items(), indices, strict=True)}
        cell, wrong = _cell(name, base, coordinates)
        if cell is not None:
            cells.append(cell)
        for error in wrong:
            place = in_body(error["pointer"], dict(zip(grid, indices, strict=True)))
            found.setdefault((place, error["detail"]), []).append(label(coordinates))
    if found:
        raise _invalid_cells(found)
    return cells


def in_body(pointer: str, indices: Mapping[str, int]) -> str:
    """A pointer into a cell's spec as one into the request; `indices`: which value of each axis the cell has."""
    for axis, index in indices.items():
        value = f"/grid/{axis.replace('~', '~0').replace('/', '~1')}/{index}"
        if f"{pointer}/".startswith(f"{axis}/"):
            return value + pointer.removeprefix(axis)
        if pointer and axis.startswith(f"{pointer}/"):  # the axis names a field within one that the spec lacks
            return value
    return f"/base{pointer}"


def _axis_errors(grid: Mapping[str, Sequence[Any]]) -> Errors:
    errors = []
    for axis, values in grid.items():
        place = validation.pointer(("grid", axis))
        if not _POINTER.fullmatch(axis):
            detail = f"{axis[:80]!r} is no JSON Pointer to a field of the spec: write one like /method/kind"
            errors.append({"pointer": place, "detail": detail})
        around = [other for other in grid if axis.startswith(f"{other}/")]
        if around:
            detail = f"it lies within {around[0]}, which the grid replaces too: keep one of the two axes"
            errors.append({"pointer": place, "detail": detail})
        texts = [json.dumps(value, sort_keys=True) for value in values]
        for index, text in enumerate(texts):
            if text in texts[:index]:
                errors.append({"pointer": f"{place}/{index}", "detail": f"{text[:80]} stands there twice: keep one"})
    return errors[:MAX_ERRORS]


def _cell(name: str, base: Mapping[str, Any], coordinates: dict[str, Any]) -> tuple[NewCell | None, Errors]:
    raw = copy.deepcopy(dict(base))
    if all(raw.get(part) is None for part in ("method", "meta")):
        raw.setdefault("preset", "default")  # so that cells with and without axes of method and meta are trained alike
    for axis, value in coordinates.items():
        try:
            _put(raw, [part.replace("~1", "/").replace("~0", "~") for part in axis[1:].split("/")], value)
        except Misplaced as problem:
            return None, [{"pointer": axis, "detail": str(problem)}]
    if "name" not in raw:
        raw["name"] = f"{name}: {label(coordinates)}"[:_MAX_NAME]
    try:
        return NewCell(coordinates, JobSpec.model_validate(raw)), []
    except ValidationError as error:
        return None, validation.body_errors(error.errors(include_url=False)[:MAX_ERRORS], raw)


def _put(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets the value at the path; sections that the base leaves out are created. Raises Misplaced."""
    place: Any = document
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        key: str | int = part
        if isinstance(place, list):
            if not part.isdecimal() or len(part) > 4 or int(part) >= len(place):
                raise Misplaced(f"the base has an array of {len(place)} there, which has no element {part[:20]!r}")
            key = int(part)
        elif not isinstance(place, dict):
            raise Misplaced(f"the base has no object at /{'/'.join(path[:depth])}: correct the pointer")
        if is_last:
            place[key] = copy.deepcopy(value)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            place = place[int(part)]


def _invalid_cells(found: Mapping[tuple[str, str], Sequence[str]]) -> Problem:
    errors = []
    for (pointer, detail), labels in islice(found.items(), MAX_ERRORS):
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        errors.append({"pointer": pointer, "detail": f"{detail} (cell {labels[0][:200]}{more})"})
    return invalid(errors)
