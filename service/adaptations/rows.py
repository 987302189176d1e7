"""Checks, before anything is queued, whether the rows of a request fit the network; errors are given field by field."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from amaml.adaptation_request import AdaptationRequest
from amaml.families.request_rows import Columns, RowError, is_usable, row_errors, shown
from amaml.spec import FamilySpec, families
from service.adaptations.initializations import Facts
from service.http.bodies import MAX_ERRORS

MAX_PREDICTIONS: Final = 200_000
"""The most numbers in an answer."""

Error = dict[str, str]


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
    family = families().get(facts.family, FamilySpec)
    yield from _placed(where, family.check_rows(rows, Columns("input", facts.in_features, facts.inputs)))


def _targets(rows: list[Any], where: str, facts: Facts, points: int) -> Iterator[Error]:
    if len(rows) != points:
        yield _error(where, f"there are {len(rows)} targets for {points} rows of x: give one for every row")
    if facts.objective != "classification" or _is_distribution(rows[0], facts):
        yield from _placed(where, row_errors(rows, Columns("output", facts.out_features, facts.outputs)))
        return
    for index, row in enumerate(rows):
        value = row[0] if isinstance(row, list) and len(row) == 1 else row
        if not is_usable(value) or value != int(value) or not 0 <= value < facts.out_features:
            yield _error(
                f"{where}/{index}",
                f"{shown(row)} is no class: give whole numbers from 0 to {facts.out_features - 1}, or rows of "
                f"{facts.out_features} probabilities",
            )


def _is_distribution(row: Any, facts: Facts) -> bool:
    return isinstance(row, list) and len(row) == facts.out_features > 1


def _placed(where: str, found: Iterator[RowError]) -> Iterator[Error]:
    return (_error(where + error.place, error.detail) for error in found)


def _error(pointer: str, detail: str) -> Error:
    return {"pointer": pointer, "detail": detail}
