"""The table of adaptations, which is also their queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Blob, LeasedRow, Workspace, now
from service.jobs.tables import Job


class Adaptation(LeasedRow):
    """A learned initialization, adapted to one task's rows. It is deleted after a while, or with its job."""

    __tablename__ = "adaptations"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="lease_while_it_runs"),
        Index("ix_adaptations_waiting", "id", postgresql_where=text("state IN ('queued', 'running')")),
        Index("ix_adaptations_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")),
        Index("ix_adaptations_job_id_id", "job_id", "id"),
        Index("ix_adaptations_workspace_id_started_at", "workspace_id", "started_at"),
    )

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    job_id: Mapped[UUID] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"))
    by: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """amaml.adaptation_request.AdaptationRequest."""
    state: Mapped[str] = mapped_column(server_default="queued")
    status_reason: Mapped[str | None]
    """Why it failed, as a word for programs."""
    status_detail: Mapped[str | None]
    """The same as a sentence, with the remedy."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """amaml.adaptation_request.AdaptationResult."""
    weights_blob_id: Mapped[UUID | None] = mapped_column(ForeignKey(Blob.id))
    tries: Mapped[int] = mapped_column(server_default="0")
    """How often it was tried; unlike `attempt`, this doesn't count tries that a worker's shutdown ended."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    started_at: Mapped[datetime | None]
    """By the latest attempt."""
    ended_at: Mapped[datetime | None]
