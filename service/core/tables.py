"""The base of every table, and the tables that all resources share. Times are Postgres' own `now()`; ids are UUIDv7, made by
Postgres 18.

Large bytes (data sets, checkpoints, initializations) lie in `blobs`, cut into chunks, so that no process ever
holds all of one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import JSON, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import UUID as PGUUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


uuid7 = func.uuidv7()
now = func.now()


class LeasedRow(Base):
    """The columns of a row that workers take with a lease (service.core.leased_queue)."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    state: Mapped[str]
    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fence: it only grows, and every write of a worker checks it."""
    lease_expires_at: Mapped[datetime | None]
    """When its worker counts as lost; null unless a worker holds the row."""


class Workspace(Base):
    __tablename__ = "workspaces"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    name: Mapped[str] = mapped_column(unique=True)
    quotas: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """Its own quotas, which replace the defaults: name → bound, null for none (service.core.quota_bounds)."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class ComputeUse(Base):
    """Seconds of the workspace's attempts that ended within the hour. They still count after their job has been deleted."""

    __tablename__ = "compute_use"

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    seconds: Mapped[float]


class Blob(Base):
    __tablename__ = "blobs"
    __table_args__ = (Index("ix_blobs_workspace_id", "workspace_id", postgresql_include=["size_bytes"]),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    workspace_id: Mapped[UUID | None] = mapped_column(ForeignKey("workspaces.id"))
    """The workspace of the row that refers to it; null while a worker writes it."""
    sha256: Mapped[str | None]
    """Null while the upload is under way: an unfinished blob is never referred to."""
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class BlobChunk(Base):
    __tablename__ = "blob_chunks"

    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    response: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The document that was answered."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class OutboxMessage(Base):
    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    sent_at: Mapped[datetime | None]


class Leadership(Base):
    """The lease of work that only one process at a time may do, and its holder."""

    __tablename__ = "leaderships"
    role: Mapped[str] = mapped_column("duty", primary_key=True)
    holder: Mapped[UUID]
    expires_at: Mapped[datetime]
