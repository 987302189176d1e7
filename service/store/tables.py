"""The tables. Times are Postgres' own `now()`; ids are UUIDv7, made by Postgres 18.

Large bytes (data sets, checkpoints, initializations) lie in `blobs`, cut into chunks, so that no process ever
holds one whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import UUID as PGUUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.store.transitions import FINAL, STATES

_NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# For the index and for whoever counts by it. Spelt out, not by parameters: to a plan that is kept for all parameters the
# partial index is of no use.
UNFINISHED = text("state NOT IN ({})".format(", ".join(f"'{one}'" for one in STATES if one in FINAL)))


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        str: Text,
        bytes: LargeBinary,
        datetime: TIMESTAMP(timezone=True),
        UUID: PGUUID(as_uuid=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }


_uuid7 = func.uuidv7()
_now = func.now()


class Workspace(Base):
    __tablename__ = "workspaces"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    name: Mapped[str] = mapped_column(unique=True)
    quotas: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """Its own, over the defaults: name → bound, null for none (service.quotas)."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class ComputeUse(Base):
    """Seconds of the workspace's attempts that ended within the hour: they count even when their job is deleted."""

    __tablename__ = "compute_use"

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    seconds: Mapped[float]


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of the key, hexadecimal: the key itself has 256 random bits, so no slow hash is needed."""
    prefix: Mapped[str]
    """The key's first characters, so that its owner can tell it from others."""
    scopes: Mapped[list[Any]]
    """What it may do: of service.scopes.GRANTS."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """From then on it opens nothing; null: never."""
    revoked_at: Mapped[datetime | None]


class Blob(Base):
    __tablename__ = "blobs"
    __table_args__ = (Index("ix_blobs_workspace_id", "workspace_id", postgresql_include=["size_bytes"]),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID | None] = mapped_column(ForeignKey("workspaces.id"))
    """That of what refers to it; null while a worker writes it."""
    sha256: Mapped[str | None]
    """Null while the upload is under way: an unfinished blob is never referred to."""
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class BlobChunk(Base):
    __tablename__ = "blob_chunks"

    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class Dataset(Base):
    """An immutable file. Until a worker has checked it, it is `pending`; with the check's report it is `ready` or `invalid` for
    ever. One that is `invalid` without a report wasn't read to its end: the same bytes, uploaded again, are checked anew."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'ready', 'invalid')", name="state"),
        UniqueConstraint("workspace_id", "sha256", "format"),
        Index(
            "uq_datasets_workspace_id_name_version",
            "workspace_id", "name", "version",
            unique=True, postgresql_where=text("name <> ''"),
        ),
        Index("ix_datasets_pending", "id", postgresql_where=text("state = 'pending'")),
    )  # fmt: skip

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    """1, 2, … of the data sets of this name; always 1 of those without a name."""
    format: Mapped[str]
    families: Mapped[list[Any]]
    """Those that can read it."""
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int | None] = mapped_column(BigInteger)
    tasks: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(server_default="pending")
    status_detail: Mapped[str | None]
    """Of an invalid one: a sentence that says what is wrong."""
    report: Mapped[dict[str, Any] | None]
    """amaml.dataset_report.DatasetReport; null until it is checked, and where the check came to no report."""
    attempt: Mapped[int] = mapped_column(server_default="0")
    """Of the check: its fence, which only grows."""
    tries: Mapped[int] = mapped_column(server_default="0")
    """How often the check was tried since the file was uploaded last."""
    lease_expires_at: Mapped[datetime | None]
    """Of the check: another worker takes it up after that."""
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    checked_at: Mapped[datetime | None]


class Study(Base):
    """A grid of jobs that are compared; its jobs name it and the cell that each of them is."""

    __tablename__ = "studies"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'cancelling', 'finished', 'cancelled')", name="state"),
        CheckConstraint("concurrency >= 1", name="concurrency"),
        Index("ix_studies_workspace_id_id", "workspace_id", "id"),
        Index("ix_studies_open", "id", postgresql_where=text("state IN ('running', 'cancelling')")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    base: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As it was given. JSON and not JSONB: it keeps the order of the fields, and of the grid's axes."""
    grid: Mapped[dict[str, Any]] = mapped_column(JSON)
    concurrency: Mapped[int]
    """How many of its jobs may be due or run at once."""
    state: Mapped[str] = mapped_column(server_default="running")
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    ended_at: Mapped[datetime | None]


class Job(Base):
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
        # With all that quotas ask for, so that the table itself needn't be read.
        Index(
            "ix_jobs_unfinished",
            "workspace_id",
            postgresql_include=["state", "estimated_seconds"],
            postgresql_where=UNFINISHED,
        ),
    )  # fmt: skip

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    tags: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Completed. JSON and not JSONB: it keeps the order of the fields."""
    spec_sha256: Mapped[str]
    family: Mapped[str]
    method: Mapped[str]
    device: Mapped[str]
    """runtime.device, so that a claim needs no look into the spec; from the first attempt on what that ran on."""
    gpu: Mapped[str | None]
    """The model of GPU that its checkpoints were written on, and are to be resumed on; null: any, or none."""
    dataset_id: Mapped[UUID | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"), index=True)
    """The data set that its family reads: not removed while the job hasn't ended."""
    init_from_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    """The job whose θ it starts from: not removed while this one hasn't ended."""
    study_id: Mapped[UUID | None] = mapped_column(ForeignKey("studies.id"))
    cell_number: Mapped[int | None]
    """0, 1, 2, … in the study's grid."""
    cell: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """JSON Pointer → the value that this cell of the grid has there."""
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    """Its study runs as many jobs as it may: no worker sees this one until it is its turn (`store.studies.advance`)."""
    estimated_seconds: Mapped[float | None]
    """What it will take, by service.estimate; null where that doesn't know."""

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

    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fence: every write of a worker carries the attempt's number and is refused once it is stale."""
    worker_id: Mapped[UUID | None]
    lease_expires_at: Mapped[datetime | None]
    progress_at: Mapped[datetime | None]
    """When the trainer last got further: the heartbeat proves the supervisor, this proves the trainer."""
    last_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Sequence number of the job's latest event."""
    runtime: Mapped[dict[str, Any] | None]
    """Threads, device and library versions of the first attempt: a run that resumes from a checkpoint takes the same."""
    initialization_blob_id: Mapped[UUID | None] = mapped_column(ForeignKey("blobs.id"))
    parameters: Mapped[int | None] = mapped_column(BigInteger)

    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    queued_at: Mapped[datetime] = mapped_column(server_default=_now)
    """Place in the queue; in the future while a retry backs off."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Adaptation(Base):
    """A learned initialization, adapted to one task's rows. Forgotten after a while; gone with its job."""

    __tablename__ = "adaptations"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="lease_while_it_runs"),
        Index("ix_adaptations_waiting", "id", postgresql_where=text("state IN ('queued', 'running')")),
        Index("ix_adaptations_job_id_id", "job_id", "id"),
        Index("ix_adaptations_workspace_id_started_at", "workspace_id", "started_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    by: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """amaml.adaptation_request.AdaptationRequest."""
    state: Mapped[str] = mapped_column(server_default="queued")
    status_reason: Mapped[str | None]
    """A machine word, where it failed."""
    status_detail: Mapped[str | None]
    """A sentence that names the remedy."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """amaml.adaptation_request.AdaptationResult."""
    weights_blob_id: Mapped[UUID | None] = mapped_column(ForeignKey("blobs.id"))
    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fence."""
    lease_expires_at: Mapped[datetime | None]
    """Another worker takes it up after that."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    started_at: Mapped[datetime | None]
    """By the latest attempt."""
    ended_at: Mapped[datetime | None]


class Attempt(Base):
    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[UUID]
    host: Mapped[str]
    trainer_pid: Mapped[int | None]
    """The process on that host that runs the attempt; null for attempts of earlier releases."""
    started_at: Mapped[datetime] = mapped_column(server_default=_now)
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    detail: Mapped[str | None]


class Checkpoint(Base):
    """All that a run needs to go on from this step. Committed under the fence."""

    __tablename__ = "checkpoints"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class Event(Base):
    __tablename__ = "events"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class Metric(Base):
    __tablename__ = "metrics"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


class Evaluation(Base):
    """What one evaluation found, task by task. A resumed attempt repeats steps; the repeat replaces the row."""

    __tablename__ = "evaluations"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    metric: Mapped[str]
    higher_is_better: Mapped[bool]
    scores: Mapped[dict[str, Any]] = mapped_column(JSON)
    """How the tasks were adapted → a score a task."""
    curve: Mapped[dict[str, Any]] = mapped_column(JSON)
    """epochs, mean and error over tasks of the fine-tuning curve."""
    along_flow: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """times, mean, error and trouble of the scores along the flow; null but for the last evaluation of a run."""


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    response: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The job as it was answered then."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class OutboxMessage(Base):
    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    sent_at: Mapped[datetime | None]


class Worker(Base):
    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    devices: Mapped[list[Any]]
    """What it can run: ["cpu"] or ["cpu", "cuda"]."""
    gpu: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """`name`, `memory_bytes` and `uuid` of the GPU that its jobs run on, where it has one."""
    started_at: Mapped[datetime] = mapped_column(server_default=_now)
    seen_at: Mapped[datetime] = mapped_column(server_default=_now)


class Leadership(Base):
    """Which process leads a duty that only one may do at a time, by a lease."""

    __tablename__ = "leaderships"
    duty: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[UUID]
    expires_at: Mapped[datetime]


class Webhook(Base):
    """Where a workspace's events are sent."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("signature IN ('hmac', 'ed25519')", name="signature"),
        Index("ix_webhooks_workspace_id_id", "workspace_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    url: Mapped[str]
    description: Mapped[str]
    events: Mapped[list[Any]]
    """Types of the messages that it gets."""
    signature: Mapped[str]
    secret: Mapped[str]
    """As service.webhooks.sealing leaves it."""
    previous_secret: Mapped[str | None]
    """Signs beside `secret` until `previous_until`."""
    previous_until: Mapped[datetime | None]
    public_key: Mapped[str | None]
    """Of `secret`, where the signature is ed25519."""
    enabled: Mapped[bool] = mapped_column(server_default="true")
    disabled_reason: Mapped[str | None]
    """A machine word, of one that isn't enabled."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed since the last good one."""
    failing_since: Mapped[datetime | None]
    """When the first of them was made."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class WebhookDelivery(Base):
    """One message to one webhook. Its id is the message's `webhook-id`, however often it is sent."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'succeeded', 'failed')", name="state"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_webhook_deliveries_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")
        ),
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
        Index("ix_webhook_deliveries_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    type: Mapped[str]
    body: Mapped[str]
    """What is sent, to the byte: every attempt signs and sends the same."""
    state: Mapped[str] = mapped_column(server_default="pending")
    attempt: Mapped[int] = mapped_column(server_default="0")
    """Number of the latest attempt: the fence."""
    tries: Mapped[int] = mapped_column(server_default="0")
    """Attempts since it was asked for, or asked for anew: the place in the schedule of retries."""
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=_now)
    lease_expires_at: Mapped[datetime | None]
    """Of the attempt that is under way."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    ended_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One time that a delivery was sent."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(server_default=_now)
    seconds: Mapped[float | None]
    """How long it took; null while it is under way, and for one whose worker was lost."""
    status: Mapped[int | None]
    error: Mapped[str | None]
    """A sentence, where there was no answer, or one that needs a remedy."""
    response: Mapped[str | None]
    """The beginning of the answer's body."""
