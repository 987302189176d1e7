"""The API's documents of a job and of what it has produced."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from service.http.examples import JOB_ID, SHA256
from service.jobs.estimate import Estimate
from service.jobs.store import Found
from service.jobs.tables import Attempt, Checkpoint, Evaluation, Event, Job
from service.jobs.transitions import State


def _links(job_id: UUID) -> dict[str, str]:
    own = f"/v1/jobs/{job_id}"
    parts = ("events", "metrics", "evaluations", "attempts", "checkpoints", "initialization")
    return {"self": own, **{part: f"{own}/{part}" for part in parts}}


SPEC_EXAMPLE: Final[dict[str, Any]] = {
    "name": "cosmixture, 100 shots",
    "tags": {"paper": "table-1"},
    "family": {"kind": "cosmixture", "dim": 2, "shots": 100},
    "trajectory": {"length": 2.0},
    "meta": {"iterations": 500},
}


class Progress(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int = Field(examples=[120])
    """Meta-iterations done."""
    iterations: int = Field(examples=[500])
    """Meta-iterations in all."""
    eta_seconds: float | None = Field(examples=[41.5])
    """Estimate of the time left; null where there is none yet."""


class Initialization(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    sha256: str = Field(examples=[SHA256])
    size_bytes: int = Field(examples=[6_480])
    parameters: int | None = Field(examples=[1_185])
    """How many numbers θ has."""


class JobDocument(BaseModel):
    """A job, as it is now."""

    model_config = ConfigDict(title="Job", use_attribute_docstrings=True)

    id: UUID = Field(examples=[JOB_ID])
    name: str = Field(examples=[SPEC_EXAMPLE["name"]])
    tags: dict[str, str] = Field(examples=[SPEC_EXAMPLE["tags"]])
    state: State = Field(examples=["running"])
    phase: str | None = Field(examples=["training"])
    """What the trainer is doing, while the job runs."""
    progress: Progress
    status_reason: str | None
    """Why the job is in its state, as a word for programs."""
    status_detail: str | None
    """The same as a sentence, with the remedy."""
    spec: dict[str, Any] = Field(examples=[SPEC_EXAMPLE])
    """The completed spec: every default is filled in."""
    metrics: dict[str, float | None] = Field(examples=[{"meta_loss": 0.31, "gradient_norm": 0.052}])
    """The latest value of each metric; null if it isn't a finite number."""
    initialization: Initialization | None = Field(examples=[None])
    """The learned initialization's file; null before the job has succeeded."""
    attempt: int = Field(examples=[1])
    """How many times a worker has begun to run the job."""
    study_id: UUID | None
    """The study to whose grid the job belongs."""
    cell: dict[str, Any] | None
    """JSON Pointer into the spec → the value that the study's grid puts there."""
    created_at: datetime
    started_at: datetime | None = Field(examples=["2026-01-15T12:00:00.040000Z"])
    ended_at: datetime | None
    links: dict[str, str] = Field(examples=[_links(JOB_ID)])


_MADE: Final = frozenset({"progress", "initialization", "links"})
"""Members of a job's document that aren't columns of its row."""


class Extension(BaseModel):
    """How long a job that has succeeded is to be continued."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    iterations: Annotated[int, Field(ge=1, le=1_000_000, examples=[1_000])]
    """Meta-iterations in total, including those that are done."""


class DryRunDocument(BaseModel):
    model_config = ConfigDict(title="DryRun")

    spec: dict[str, Any] = Field(examples=[SPEC_EXAMPLE])
    estimate: Estimate


class AttemptDocument(BaseModel):
    model_config = ConfigDict(title="Attempt", use_attribute_docstrings=True)

    number: int = Field(examples=[1])
    worker_id: UUID
    host: str = Field(examples=["gpu-3"])
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    """Why it ended, as a word for programs; null while it runs, and if it ended normally."""
    detail: str | None


class EventDocument(BaseModel):
    model_config = ConfigDict(title="Event", use_attribute_docstrings=True)

    seq: int = Field(examples=[2])
    """1, 2, 3, … within the job, without gaps."""
    kind: str = Field(examples=["state"])
    """`state`, `progress` or `checkpoint`."""
    data: dict[str, Any] = Field(examples=[{"state": "running", "from": "queued", "reason": None, "detail": None}])
    created_at: datetime


class CurveDocument(BaseModel):
    model_config = ConfigDict(title="FineTuningCurve", use_attribute_docstrings=True)

    epochs: list[float] = Field(examples=[[0, 10, 20]])
    """Epochs of fine-tuning; 0 is the initialization itself."""
    mean: list[float | None] = Field(examples=[[0.9, 0.45, 0.32]])
    """The mean score over tasks, after each of these numbers of epochs."""
    error: list[float | None] = Field(examples=[[0.05, 0.03, 0.04]])
    """The standard error of the mean; null if there is only one task."""


class AlongFlowDocument(BaseModel):
    model_config = ConfigDict(title="AlongFlow", use_attribute_docstrings=True)

    times: list[float] = Field(examples=[[0.0, 1.0, 2.0, 4.0]])
    """Times along the inner flow; 0 is the initialization itself. Training never used times beyond the trajectory's length."""
    mean: list[float | None] = Field(examples=[[0.9, 0.5, 0.36, 0.35]])
    """The mean score over tasks, at each of the times; null if the flow of a task could not be solved that far."""
    error: list[float | None] = Field(examples=[[0.05, 0.05, 0.05, 0.06]])
    trouble: str | None
    """Why the flow could not be solved beyond the trajectory's length."""


class EvaluationDocument(BaseModel):
    """The results of one evaluation, on tasks that were not used in training."""

    model_config = ConfigDict(title="Evaluation", use_attribute_docstrings=True)

    step: int = Field(examples=[500])
    """Meta-iterations done."""
    metric: str = Field(examples=["nrmse"])
    """`nrmse`, `accuracy`, …"""
    higher_is_better: bool = Field(examples=[False])
    scores: dict[str, list[float | None]] = Field(
        examples=[{"flow": [0.31, 0.42], "tuned": [0.28, 0.36], "tuned_best": [0.28, 0.35], "random": [0.71, 0.69]}]
    )
    """How the tasks were adapted (`flow`, `tuned`, `tuned_best`, `random`, and the plain baselines) → one score per test task.
    The order of the tasks is the same in every list, and in every job of the same family, seed and number of test tasks."""
    curve: CurveDocument
    along_flow: AlongFlowDocument | None
    """Only in a run's last evaluation."""


class CheckpointDocument(BaseModel):
    model_config = ConfigDict(title="Checkpoint", use_attribute_docstrings=True)

    step: int = Field(examples=[100])
    """Meta-iterations done when it was written."""
    attempt: int = Field(examples=[1])
    sha256: str = Field(examples=[SHA256])
    size_bytes: int = Field(examples=[18_432])
    created_at: datetime
    links: dict[str, str] = Field(examples=[{"self": f"/v1/jobs/{JOB_ID}/checkpoints/100"}])


def found_document(found: Found) -> JobDocument:
    if found.sha256 is None or found.size_bytes is None:
        return job_document(found.job)
    file = Initialization(sha256=found.sha256, size_bytes=found.size_bytes, parameters=found.job.parameters)
    return job_document(found.job, file)


def job_document(job: Job, initialization: Initialization | None = None) -> JobDocument:
    return JobDocument(
        **{name: getattr(job, name) for name in JobDocument.model_fields if name not in _MADE},
        progress=Progress.model_validate(job, from_attributes=True),
        initialization=initialization,
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
