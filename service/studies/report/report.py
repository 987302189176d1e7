"""What a study has found, from the evaluations of its jobs: means over seeds, the best, and whether the others differ.

Rows are the cells but for their seeds. They are compared within a block, whose cells have the same task family and evaluation:
only then are they scored on the same test tasks. Within a block the best row is the one with the best mean. Every other is
tested against it by a paired t test over test tasks × seeds.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import fmean, stdev
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from amaml.metrics import MEMORY_BYTES
from service.studies.report.student import paired_p_value
from service.studies.report.words import axis_name
from service.studies.store import CellResult, Found

SEED: Final = "/runtime/seed"
SAME_TASKS: Final = ("family", "evaluation")
"""Sections of a spec that say which tasks are scored, and how."""
SUCCEEDED: Final = "succeeded"


class Axis(BaseModel):
    pointer: str
    name: str
    values: list[Any]


class MeanAndError(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    mean: float
    error: float | None
    """Standard error."""
    over: Literal["seeds", "tasks"]
    """What the standard error is over: the seeds, or for one seed alone its test tasks."""


class MeanCurve(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    epochs: list[float]
    """Of fine-tuning."""
    mean: list[float | None]
    """Over seeds and tasks."""
    error: list[float | None]
    """Standard error over seeds, or for one seed alone over its test tasks."""


class SeedResult(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    job_id: UUID
    seed: Any
    """Null where the grid has no axis of seeds."""
    state: str
    score: float | None
    """Mean over test tasks; null unless the job has succeeded."""


class Row(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    coordinates: dict[str, Any]
    """JSON Pointer → value, without seeds and without what the block has in common."""
    jobs: list[SeedResult]
    scored: int
    """How many of the jobs have succeeded: what all numbers of the row are of."""
    score: MeanAndError | None
    also: dict[str, MeanAndError]
    """The other scores, by how the tasks were adapted."""
    best: bool
    difference: float | None
    """Mean of this row's scores less the best's, over the pairs; null for the best itself."""
    p_value: float | None
    """Two-sided, of a paired t test against the best row; null for the best itself, and without pairs."""
    pairs: int
    """Test tasks × seeds that both rows have scores of."""
    seconds: float | None
    """A meta-update takes (median of the last thousand, mean over jobs)."""
    memory_bytes: float | None
    """What meta-updates took at most, beyond what the trainer held when the run began; the largest of the jobs."""
    curve: MeanCurve | None


class Block(BaseModel):
    """Rows that were scored on the same test tasks."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    coordinates: dict[str, Any]
    """What its cells have in common."""
    metric: str | None
    higher_is_better: bool | None
    rows: list[Row]


class Trouble(BaseModel):
    """A cell without a result, and why."""

    coordinates: dict[str, Any]
    job_id: UUID
    state: str
    status_reason: str | None
    status_detail: str | None
    iteration: int
    iterations: int


class StudyReport(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: UUID
    name: str
    state: str
    created_at: datetime
    ended_at: datetime | None
    states: dict[str, int]
    """State → how many jobs."""
    score: str
    """How the tasks were adapted for the scores that are compared: `tuned`, `flow`, …"""
    axes: list[Axis]
    blocks: list[Block]
    without_result: list[Trouble]
    """Cells that have failed, were cancelled, or haven't ended."""


def report(found: Found, results: Sequence[CellResult], score: str) -> StudyReport:
    study = found.study
    blocks: defaultdict[str, list[CellResult]] = defaultdict(list)
    for result in results:
        blocks[_key(_common(result.cell.coordinates))].append(result)
    return StudyReport(
        id=study.id,
        name=study.name,
        state=study.state,
        created_at=study.created_at,
        ended_at=study.ended_at,
        states=found.states,
        score=score,
        axes=[Axis(pointer=axis, name=axis_name(axis), values=values) for axis, values in study.grid.items()],
        blocks=[_block(members, score) for members in blocks.values()],
        without_result=[_trouble(one, score) for one in results if not _scores(one, score)],
    )


def _common(coordinates: Mapping[str, Any]) -> dict[str, Any]:
    return {axis: value for axis, value in coordinates.items() if axis.split("/")[1] in SAME_TASKS}


def _block(members: Sequence[CellResult], score: str) -> Block:
    common = _common(members[0].cell.coordinates)
    apart: defaultdict[str, list[CellResult]] = defaultdict(list)
    for one in members:
        apart[_key(_own(one))].append(one)
    evaluation = next((one.evaluation for one in members if one.evaluation is not None), None)
    rows = [_row(own, score) for own in apart.values()]
    best = _best(rows, evaluation is not None and evaluation.higher_is_better)
    if best is not None:
        rows[best].best = True
        groups = list(apart.values())
        for index, row in enumerate(rows):
            if index != best:
                _compare(row, groups[index], groups[best], score)
    return Block(
        coordinates=common,
        metric=None if evaluation is None else evaluation.metric,
        higher_is_better=None if evaluation is None else evaluation.higher_is_better,
        rows=rows,
    )


def _own(result: CellResult) -> dict[str, Any]:
    """Coordinates without seed and without what the block has in common."""
    common = _common(result.cell.coordinates)
    return {axis: value for axis, value in result.cell.coordinates.items() if axis != SEED and axis not in common}


def _row(members: Sequence[CellResult], score: str) -> Row:
    scored = [one for one in members if _scores(one, score)]
    evaluations = [one.evaluation for one in scored if one.evaluation is not None]
    names = [name for name in (evaluations[0].scores if evaluations else {}) if name != score]
    memory = [held for one in scored if (held := one.cell.metrics.get(MEMORY_BYTES)) is not None]
    seconds = [one.seconds for one in scored if one.seconds is not None]
    return Row(
        coordinates=_own(members[0]),
        jobs=[
            SeedResult(
                job_id=one.cell.job_id,
                seed=one.cell.coordinates.get(SEED),
                state=one.cell.state,
                score=_mean(_scores(one, score)),
            )
            for one in members
        ],
        scored=len(scored),
        score=_estimate([_scores(one, score) for one in scored]),
        also={
            name: estimate
            for name in names
            if (estimate := _estimate([_scores(one, name) for one in scored])) is not None
        },
        best=False,
        difference=None,
        p_value=None,
        pairs=0,
        seconds=fmean(seconds) if seconds else None,
        memory_bytes=max(memory) if memory else None,
        curve=_curve([evaluation.curve for evaluation in evaluations]),
    )


def _scores(result: CellResult, score: str) -> list[float | None]:
    """A score a test task, null where it isn't finite; empty for a job that hasn't succeeded."""
    if result.cell.state != SUCCEEDED or result.evaluation is None:
        return []
    found: list[float | None] = result.evaluation.scores.get(score, [])
    return found


def _estimate(by_seed: Sequence[Sequence[float | None]]) -> MeanAndError | None:
    """Mean over seeds of the means over tasks."""
    means = [mean for mean in map(_mean, by_seed) if mean is not None]
    if not means:
        return None
    if len(means) > 1:
        return MeanAndError(mean=fmean(means), error=_error(means), over="seeds")
    return MeanAndError(mean=means[0], error=_error(_finite(by_seed[0])), over="tasks")


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any value is missing: a mean of the others would be too good."""
    finite = _finite(values)
    return fmean(finite) if finite and len(finite) == len(values) else None


def _error(values: Sequence[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _best(rows: Sequence[Row], higher_is_better: bool) -> int | None:
    """The index of the row with the best mean, among those with the most seeds: a lucky single one doesn't win."""
    most = max(row.scored for row in rows)
    means = {index: row.score.mean for index, row in enumerate(rows) if row.scored == most and row.score is not None}
    if not means:
        return None
    return (max if higher_is_better else min)(means, key=lambda index: means[index])


def _compare(row: Row, own: Sequence[CellResult], best: Sequence[CellResult], score: str) -> None:
    """Fills in the paired test against the best row."""
    theirs = {_key(one.cell.coordinates.get(SEED)): _scores(one, score) for one in best}
    differences = []
    for one in own:
        mine, other = _scores(one, score), theirs.get(_key(one.cell.coordinates.get(SEED)), [])
        if len(mine) == len(other):
            pairs = zip(mine, other, strict=True)
            differences += [a - b for a, b in pairs if a is not None and b is not None]
    row.pairs = len(differences)
    row.difference = fmean(differences) if differences else None
    row.p_value = paired_p_value(differences)


def _curve(curves: Sequence[Mapping[str, Any]]) -> MeanCurve | None:
    if not curves or any(one["epochs"] != curves[0]["epochs"] for one in curves):
        return None
    if len(curves) == 1:
        return MeanCurve(**curves[0])
    columns = [list(column) for column in zip(*(one["mean"] for one in curves), strict=True)]
    return MeanCurve(
        epochs=curves[0]["epochs"],
        mean=[_mean(column) for column in columns],
        error=[_error(_finite(column)) for column in columns],
    )


def _trouble(result: CellResult, score: str) -> Trouble:
    cell = result.cell
    reason, detail = cell.status_reason, cell.status_detail
    if cell.state == SUCCEEDED:
        reason, detail = "no_score", f"It has no score {score!r}: ask for another."
    return Trouble(
        coordinates=cell.coordinates,
        job_id=cell.job_id,
        state=cell.state,
        status_reason=reason,
        status_detail=detail,
        iteration=cell.iteration,
        iterations=cell.iterations,
    )


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
