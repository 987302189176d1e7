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

from service.store.transitions import STATES

_NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


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
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of the key, hexadecimal: the key itself has 256 random bits, so no slow hash is needed."""
    prefix: Mapped[str]
    """The key's first characters, so that its owner can tell it from others."""
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Blob(Base):
    __tablename__ = "blobs"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
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
    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("workspace_id", "sha256", "format"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=_uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    format: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    tasks: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str]
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ({})".format(", ".join(f"'{state}'" for state in STATES)), name="state"),
        CheckConstraint(
            "(state IN ('running', 'pausing', 'cancelling')) = (lease_expires_at IS NOT NULL)",
            name="lease_while_it_runs",
        ),
        Index("ix_jobs_queue", "queued_at", "id", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")),
        Index("ix_jobs_workspace_id_id", "workspace_id", "id"),
    )

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
    """runtime.device, so that a claim needs no look into the spec."""
    dataset_id: Mapped[UUID | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"), index=True)
    """The data set that its family reads: not removed while the job hasn't ended."""
    init_from_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    """The job whose θ it starts from: not removed while this one hasn't ended."""

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


class Attempt(Base):
    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[UUID]
    host: Mapped[str]
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
    started_at: Mapped[datetime] = mapped_column(server_default=_now)
    seen_at: Mapped[datetime] = mapped_column(server_default=_now)


class Leadership(Base):
    """Which process leads a duty that only one may do at a time, by a lease."""

    __tablename__ = "leaderships"
    duty: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[UUID]
    expires_at: Mapped[datetime]
