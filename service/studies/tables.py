"""The table of studies."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Base, Workspace, now, uuid7


class Study(Base):
    """A grid of jobs to be compared. Each of its jobs refers to it and holds its own cell of the grid."""

    __tablename__ = "studies"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'cancelling', 'finished', 'cancelled')", name="state"),
        CheckConstraint("concurrency >= 1", name="concurrency"),
        Index("ix_studies_workspace_id_id", "workspace_id", "id"),
        Index("ix_studies_open", "id", postgresql_where=text("state IN ('running', 'cancelling')")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    name: Mapped[str]
    base: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As submitted. JSON and not JSONB, which wouldn't keep the order of the fields, and of the grid's axes."""
    grid: Mapped[dict[str, Any]] = mapped_column(JSON)
    concurrency: Mapped[int]
    """How many of its jobs may be due or run at once."""
    state: Mapped[str] = mapped_column(server_default="running")
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    ended_at: Mapped[datetime | None]
