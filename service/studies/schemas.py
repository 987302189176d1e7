"""The API's documents of a study, and the body that submits one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from service.http.examples import JOB_ID, STUDY_ID
from service.jobs.transitions import State
from service.studies.store import CellRow, Found, StudyState

MAX_CONCURRENCY = 64

Axis = Annotated[list[Any], Field(min_length=1, max_length=500)]


_NAME: Final = "methods on CosMixture"
_BASE: Final = {"family": {"kind": "cosmixture", "dim": 1}, "meta": {"iterations": 500}, "trajectory": {"length": 2.0}}
_GRID: Final = {"/method/kind": ["amaml", "reptile"], "/runtime/seed": [0, 1, 2]}


def _links(study_id: UUID) -> dict[str, str]:
    own = f"/v1/studies/{study_id}"
    return {"self": own, "report": f"{own}/report", "jobs": f"/v1/jobs?study={study_id}"}


class NewStudy(BaseModel):
    """A grid of jobs: every combination of the axes' values, each inserted into the base spec."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(max_length=200, examples=[_NAME])] = ""
    base: dict[str, Any] = Field(examples=[_BASE])
    """A job spec, in which fields that the grid sets may be left out. Jobs without a name get that of the study and the cell."""
    grid: Annotated[dict[str, Axis], Field(min_length=1, max_length=16, examples=[_GRID])]
    """JSON Pointer into the spec → values, each of which replaces what the base has there: a field's value, or a whole section.
    At most 500 cells in total. `/runtime/seed` is the axis over which means are taken."""
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = 2
    """How many of its jobs may wait for a worker or run at the same time."""


class StudyProgress(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int = Field(examples=[740])
    """Meta-iterations done, summed over jobs."""
    iterations: int = Field(examples=[3_000])
    """Meta-iterations in total, summed over jobs."""


class StudyDocument(BaseModel):
    """A study, as it is now."""

    model_config = ConfigDict(title="Study", use_attribute_docstrings=True)

    id: UUID = Field(examples=[STUDY_ID])
    name: str = Field(examples=[_NAME])
    state: StudyState
    """`finished` when every job has ended, whether it succeeded or not."""
    concurrency: int = Field(examples=[2])
    cells: int = Field(examples=[6])
    """How many jobs it has."""
    states: dict[State, int] = Field(examples=[{"queued": 3, "running": 2, "succeeded": 1}])
    """State → how many of its jobs are in it."""
    progress: StudyProgress
    base: dict[str, Any] = Field(examples=[_BASE])
    grid: dict[str, list[Any]] = Field(examples=[_GRID])
    created_at: datetime
    ended_at: datetime | None
    links: dict[str, str] = Field(examples=[_links(STUDY_ID)])


class CellDocument(BaseModel):
    model_config = ConfigDict(title="Cell", use_attribute_docstrings=True)

    cell: dict[str, Any] = Field(examples=[{"/method/kind": "amaml", "/runtime/seed": 0}])
    """JSON Pointer → value."""
    job_id: UUID = Field(examples=[JOB_ID])
    state: State = Field(examples=["running"])
    status_reason: str | None
    status_detail: str | None
    progress: StudyProgress = Field(examples=[{"iteration": 120, "iterations": 500}])
    metrics: dict[str, float | None] = Field(examples=[{"meta_loss": 0.31}])
    """The latest value of each metric."""


class StudyDetail(StudyDocument):
    """A study with its cells, in the grid's order: the last axis changes fastest."""

    model_config = ConfigDict(title="StudyWithCells")

    jobs: list[CellDocument]


def study_document(found: Found) -> StudyDocument:
    study = found.study
    return StudyDocument(
        id=study.id,
        name=study.name,
        state=cast(StudyState, study.state),
        concurrency=study.concurrency,
        cells=sum(found.states.values()),
        states=cast("dict[State, int]", found.states),
        progress=StudyProgress(iteration=found.iteration, iterations=found.iterations),
        base=study.base,
        grid=study.grid,
        created_at=study.created_at,
        ended_at=study.ended_at,
        links=_links(study.id),
    )


def study_detail(found: Found, cells: list[CellRow]) -> StudyDetail:
    return StudyDetail(**study_document(found).model_dump(), jobs=[_cell_document(cell) for cell in cells])


def _cell_document(cell: CellRow) -> CellDocument:
    return CellDocument(
        cell=cell.coordinates,
        job_id=cell.job_id,
        state=cast(State, cell.state),
        status_reason=cell.status_reason,
        status_detail=cell.status_detail,
        progress=StudyProgress(iteration=cell.iteration, iterations=cell.iterations),
        metrics=cell.metrics,
    )
