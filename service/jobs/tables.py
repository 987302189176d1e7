"""The tables of jobs, their attempts, and all that an attempt writes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Base, Blob, LeasedRow, Workspace, now
from service.datasets.tables import Dataset
from service.jobs.transitions import FINAL, STATES
from service.studies.tables import Study

# The condition of a partial index, and of queries that count by it. It has no parameters: for a plan that is kept for all
# values of its parameters, Postgres can't use the index.
UNFINISHED = text("state NOT IN ({})".format(", ".join(f"'{one}'" for one in STATES if one in FINAL)))


class Job(LeasedRow):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ({})".format(", ".join(f"'{state}'" for state in STATES)), name="state"),
        CheckConstraint(
            "(state IN ('running', 'pausing', 'cancelling')) = (lease_expires_at IS NOT NULL)",
            name="lease_while_it_runs",
        ),
        CheckConstraint("(study_id IS NULL) = (cell IS NULL)", name="cell_of_a_study"),
        CheckConstraint("study_id IS NOT NULL OR NOT held", name="held_by_a_study"),
        # What its study holds back isn't in the queue: a claim's cost doesn't grow with it.
        Index("ix_jobs_queue", "queued_at", "id", postgresql_where=text("state = 'queued' AND NOT held")),
        Index(
            "uq_jobs_study_id_cell_number",
            "study_id", "cell_number",
            unique=True, postgresql_where=text("study_id IS NOT NULL"),
        ),
        Index("ix_jobs_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")),
        Index("ix_jobs_workspace_id_id", "workspace_id", "id"),
        # Includes all columns that quotas need, so that the table itself needn't be read.
        Index(
            "ix_jobs_unfinished",
            "workspace_id",
            postgresql_include=["state", "estimated_seconds"],
            postgresql_where=UNFINISHED,
        ),
    )  # fmt: skip

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    name: Mapped[str]
    tags: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Completed. JSON and not JSONB: it keeps the order of the fields."""
    spec_sha256: Mapped[str]
    family: Mapped[str]
    method: Mapped[str]
    device: Mapped[str]
    """runtime.device, so that a claim needn't read the spec; from the first attempt on, the device that it ran on."""
    gpu: Mapped[str | None]
    """The model of GPU on which its checkpoints were written and must be resumed; null: any model, or no GPU."""
    dataset_id: Mapped[UUID | None] = mapped_column(ForeignKey(Dataset.id, ondelete="SET NULL"), index=True)
    """The data set that its family reads; it can't be removed before the job has ended."""
    init_from_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    """The job from whose θ it starts; that job can't be removed before this one has ended."""
    study_id: Mapped[UUID | None] = mapped_column(ForeignKey(Study.id))
    cell_number: Mapped[int | None]
    """0, 1, 2, … in the study's grid."""
    cell: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """JSON Pointer → the value that this cell of the grid has there."""
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    """Its study runs as many jobs as it may: no worker sees this one until it is its turn (`service.studies.store.advance`)."""
    estimated_seconds: Mapped[float | None]
    """By service.jobs.estimate; null if it has no estimate."""

    state: Mapped[str] = mapped_column(server_default="queued")
    phase: Mapped[str | None]
    status_reason: Mapped[str | None]
    """A machine word."""
    status_detail: Mapped[str | None]
    """A sentence that names the remedy."""
    iteration: Mapped[int] = mapped_column(server_default="0")
    iterations: Mapped[int]
    eta_seconds: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """The latest value of each metric."""

    worker_id: Mapped[UUID | None]
    progress_at: Mapped[datetime | None]
    """When the trainer last made progress: the heartbeat shows that the supervisor works, this that the trainer does."""
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Sequence number of the job's latest event."""
    runtime: Mapped[dict[str, Any] | None]
    """Threads, device and library versions of the first attempt: a run that resumes from a checkpoint uses the same."""
    initialization_blob_id: Mapped[UUID | None] = mapped_column(ForeignKey(Blob.id))
    parameters: Mapped[int | None] = mapped_column(BigInteger)

    created_at: Mapped[datetime] = mapped_column(server_default=now)
    queued_at: Mapped[datetime] = mapped_column(server_default=now)
    """Place in the queue; in the future while a retry backs off."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Attempt(Base):
    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[UUID]
    host: Mapped[str]
    trainer_pid: Mapped[int | None]
    """The process on that host that runs the attempt; null for attempts of earlier releases."""
    started_at: Mapped[datetime] = mapped_column(server_default=now)
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    detail: Mapped[str | None]


class Checkpoint(Base):
    """Everything that a run needs to continue from this step. Committed under the fence."""

    __tablename__ = "checkpoints"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    blob_id: Mapped[UUID] = mapped_column(ForeignKey(Blob.id))
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class Event(Base):
    __tablename__ = "events"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class Metric(Base):
    __tablename__ = "metrics"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


class Evaluation(Base):
    """The results of one evaluation, task by task. A resumed attempt repeats steps; the repetition replaces the row."""

    __tablename__ = "evaluations"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    metric: Mapped[str]
    higher_is_better: Mapped[bool]
    scores: Mapped[dict[str, Any]] = mapped_column(JSON)
    """How the tasks were adapted → one score per task."""
    curve: Mapped[dict[str, Any]] = mapped_column(JSON)
    """epochs, mean and error over tasks of the fine-tuning curve."""
    along_flow: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """times, mean, error and trouble of the scores along the flow; null except for a run's last evaluation."""
