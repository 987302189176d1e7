"""What the API says about a job."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.estimate import Estimate
from service.jobs.store import Found
from service.jobs.tables import Attempt, Checkpoint, Evaluation, Event, Job
from service.jobs.transitions import State


class Progress(BaseModel):
    iteration: int
    """Meta-iterations done."""
    iterations: int
    """Meta-iterations in all."""
    eta_seconds: float | None
    """Estimate of the time left; null where there is none yet."""


class Initialization(BaseModel):
    sha256: str
    size_bytes: int
    parameters: int | None
    """How many numbers θ has."""


class JobDocument(BaseModel):
    """A job, as it is now."""

    model_config = ConfigDict(title="Job", use_attribute_docstrings=True)

    id: UUID
    name: str
    tags: dict[str, str]
    state: State
    phase: str | None
    """What the trainer is at, while the job runs."""
    progress: Progress
    status_reason: str | None
    """A machine word for why the job is in its state."""
    status_detail: str | None
    """A sentence that names the remedy."""
    spec: dict[str, Any]
    """The completed spec: every default written out."""
    metrics: dict[str, float | None]
    """The latest value of each metric; null where it isn't a finite number."""
    initialization: Initialization | None
    """What was learned; null before the job has succeeded."""
    attempt: int
    """How many times a worker took the job up."""
    study_id: UUID | None
    """The study whose grid it is a cell of."""
    cell: dict[str, Any] | None
    """JSON Pointer into the spec → the value that the cell has there."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    links: dict[str, str]


class Extension(BaseModel):
    """How far a job that succeeded is to go on."""

    model_config = ConfigDict(extra="forbid")

    iterations: Annotated[int, Field(ge=1, le=1_000_000)]
    """Meta-iterations in all, those that are done among them."""


class DryRunDocument(BaseModel):
    model_config = ConfigDict(title="DryRun")

    spec: dict[str, Any]
    estimate: Estimate


class AttemptDocument(BaseModel):
    model_config = ConfigDict(title="Attempt", use_attribute_docstrings=True)

    number: int
    worker_id: UUID
    host: str
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    """A machine word for why it ended; null while it runs, and where it ended well."""
    detail: str | None


class EventDocument(BaseModel):
    model_config = ConfigDict(title="Event", use_attribute_docstrings=True)

    seq: int
    """1, 2, 3, … within the job, without gaps."""
    kind: str
    """`state`, `progress` or `checkpoint`."""
    data: dict[str, Any]
    created_at: datetime


class CurveDocument(BaseModel):
    model_config = ConfigDict(title="FineTuningCurve", use_attribute_docstrings=True)

    epochs: list[float]
    """Of fine-tuning; 0 is the start itself."""
    mean: list[float | None]
    """Over tasks, after each."""
    error: list[float | None]
    """The mean's standard error; null for one task alone."""


class AlongFlowDocument(BaseModel):
    model_config = ConfigDict(title="AlongFlow", use_attribute_docstrings=True)

    times: list[float]
    """Along the inner flow: 0 is the start itself; those beyond the trajectory's length were never trained for."""
    mean: list[float | None]
    """Over tasks, at each; null where the flow of a task could not be solved so far."""
    error: list[float | None]
    trouble: str | None
    """Why the flow could not be solved beyond the trajectory's length."""


class EvaluationDocument(BaseModel):
    """What one evaluation found, on tasks that were never trained on."""

    model_config = ConfigDict(title="Evaluation", use_attribute_docstrings=True)

    step: int
    """Meta-iterations done."""
    metric: str
    """`nrmse`, `accuracy`, …"""
    higher_is_better: bool
    scores: dict[str, list[float | None]]
    """How the tasks were adapted (`flow`, `tuned`, `tuned_best`, `random`, and the plain baselines) → a score a test task. The
    order of the tasks is the same in every list, and in every job of the same family, seed and number of test tasks."""
    curve: CurveDocument
    along_flow: AlongFlowDocument | None
    """Only of a run's last evaluation."""


class CheckpointDocument(BaseModel):
    model_config = ConfigDict(title="Checkpoint", use_attribute_docstrings=True)

    step: int
    """Meta-iterations done when it was written."""
    attempt: int
    sha256: str
    size_bytes: int
    created_at: datetime
    links: dict[str, str]


def found_document(found: Found) -> JobDocument:
    if found.sha256 is None or found.size_bytes is None:
        return job_document(found.job)
    file = Initialization(sha256=found.sha256, size_bytes=found.size_bytes, parameters=found.job.parameters)
    return job_document(found.job, file)


def job_document(job: Job, initialization: Initialization | None = None) -> JobDocument:
    return JobDocument(
        id=job.id,
        name=job.name,
        tags=job.tags,
        state=cast(State, job.state),
        phase=job.phase,
        progress=Progress(iteration=job.iteration, iterations=job.iterations, eta_seconds=job.eta_seconds),
        status_reason=job.status_reason,
        status_detail=job.status_detail,
        spec=job.spec,
        metrics=job.metrics,
        initialization=initialization,
        attempt=job.attempt,
        study_id=job.study_id,
        cell=job.cell,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        links=_links(job.id),
    )


def attempt_document(attempt: Attempt) -> AttemptDocument:
    return AttemptDocument.model_validate(attempt, from_attributes=True)


def event_document(event: Event) -> EventDocument:
    return EventDocument.model_validate(event, from_attributes=True)


def evaluation_document(evaluation: Evaluation) -> EvaluationDocument:
    return EvaluationDocument.model_validate(evaluation, from_attributes=True)


def checkpoint_document(checkpoint: Checkpoint, sha256: str, size_bytes: int) -> CheckpointDocument:
    return CheckpointDocument(
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        sha256=sha256,
        size_bytes=size_bytes,
        created_at=checkpoint.created_at,
        links={"self": f"/v1/jobs/{checkpoint.job_id}/checkpoints/{checkpoint.step}"},
    )


def _links(job_id: UUID) -> dict[str, str]:
    own = f"/v1/jobs/{job_id}"
    parts = ("events", "metrics", "evaluations", "attempts", "checkpoints", "initialization")
    return {"self": own, **{part: f"{own}/{part}" for part in parts}}
