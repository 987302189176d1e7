"""Checks, before anything is queued, whether the rows of a request fit the network; errors are given field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from amaml.adaptation_request import LARGEST, AdaptationRequest
from service.adaptations.initializations import Facts
from service.http.bodies import MAX_ERRORS

MAX_PREDICTIONS: Final = 200_000
"""The most numbers in an answer."""

MOST_NAMES: Final = 20
"""The most names that a sentence lists."""

Error = dict[str, str]


@dataclass(frozen=True)
class _Columns:
    """What the numbers of a row stand for."""

    what: str
    width: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        """As in "give 2 numbers, one an input (age, height)"."""
        count = f"{self.width} number{'s' if self.width > 1 else ''}, one an {self.what}"
        return f"{count} ({', '.join(self.names)})" if len(self.names) == self.width <= MOST_NAMES else count


def errors(request: AdaptationRequest, facts: Facts) -> list[Error]:
    """{pointer, detail} of the first errors."""
    return list(islice(_all(request, facts), MAX_ERRORS))


def _all(request: AdaptationRequest, facts: Facts) -> Iterator[Error]:
    yield from _inputs(request.support.x, "/support/x", facts)
    yield from _targets(request.support.y, "/support/y", facts, len(request.support.x))
    if request.query is None:
        return
    yield from _inputs(request.query.x, "/query/x", facts)
    if request.query.y is not None:
        yield from _targets(request.query.y, "/query/y", facts, len(request.query.x))
    answered = len(request.query.x) * facts.out_features
    if "predictions" in request.wanted and answered > MAX_PREDICTIONS:
        most = MAX_PREDICTIONS // facts.out_features
        yield _error(
            "/query/x",
            f"{len(request.query.x)} rows have {answered} predictions, at most {MAX_PREDICTIONS} are answered at once: send "
            f"{most} rows at a time",
        )


def _inputs(rows: list[Any], where: str, facts: Facts) -> Iterator[Error]:
    if isinstance(rows[0], str):
        yield from _names(rows, where, facts)
    else:
        yield from _rows(rows, where, _Columns("input", facts.in_features, facts.inputs))


def _names(rows: list[Any], where: str, facts: Facts) -> Iterator[Error]:
    if facts.family != "ratings":
        yield _error(f"{where}/0", f"{_shown(rows[0])} is text: give rows of {facts.in_features} numbers")
        return
    known = set(facts.inputs)
    for index, name in enumerate(rows):
        if not isinstance(name, str) or name not in known:
            yield _error(
                f"{where}/{index}",
                f"{_shown(name)} is none of the {len(known)} items that the network knows: they are `inputs` in the "
                "initialization's metadata, ids of the data set as text",
            )


def _targets(rows: list[Any], where: str, facts: Facts, points: int) -> Iterator[Error]:
    if len(rows) != points:
        yield _error(where, f"there are {len(rows)} targets for {points} rows of x: give one for every row")
    if facts.objective != "classification" or _is_distribution(rows[0], facts):
        yield from _rows(rows, where, _Columns("output", facts.out_features, facts.outputs))
        return
    for index, row in enumerate(rows):
        value = row[0] if isinstance(row, list) and len(row) == 1 else row
        if not _is_number(value) or value != int(value) or not 0 <= value < facts.out_features:
            yield _error(
                f"{where}/{index}",
                f"{_shown(row)} is no class: give whole numbers from 0 to {facts.out_features - 1}, or rows of "
                f"{facts.out_features} probabilities",
            )


def _is_distribution(row: Any, facts: Facts) -> bool:
    return isinstance(row, list) and len(row) == facts.out_features > 1


def _rows(rows: list[Any], where: str, columns: _Columns) -> Iterator[Error]:
    """Rows of one number per column. If there is one column, all rows may be plain numbers instead."""
    if columns.width == 1 and not isinstance(rows[0], list):
        yield from _numbers(rows, where)
        return
    for index, row in enumerate(rows):
        if not isinstance(row, list):
            yield _error(f"{where}/{index}", f"{_shown(row)} is no row: give an array of {columns}")
        elif len(row) != columns.width:
            yield _error(f"{where}/{index}", f"the row has {len(row)} numbers: give {columns}")
        else:
            yield from _numbers(row, f"{where}/{index}")


def _numbers(values: list[Any], where: str) -> Iterator[Error]:
    for index, value in enumerate(values):
        if not _is_number(value):
            detail = f"{_shown(value)} is no number that can be used: give one between {-LARGEST:g} and {LARGEST:g}"
            yield _error(f"{where}/{index}", detail)


def _is_number(value: Any) -> bool:
    # Python reads JSON's true as a bool, which is an int, and 1e999 as infinity.
    return type(value) in (float, int) and -LARGEST <= value <= LARGEST


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _error(pointer: str, detail: str) -> Error:
    return {"pointer": pointer, "detail": detail}
