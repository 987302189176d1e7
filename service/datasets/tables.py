"""The table of data sets, which is also the queue of their checks."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Blob, LeasedRow, Workspace, now


class Dataset(LeasedRow):
    """An immutable file. It is `pending` until a worker has checked it; by the check's report it is then `ready` or `invalid` for
    ever. If it is `invalid` without a report, the check didn't end, and uploading the same bytes again has it checked again."""

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
        Index("ix_datasets_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")),
    )  # fmt: skip

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    name: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    """1, 2, … of the data sets of this name; always 1 of those without a name."""
    format: Mapped[str]
    families: Mapped[list[Any]]
    """Task families that can read it."""
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int | None] = mapped_column(BigInteger)
    tasks: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(server_default="pending")
    status_detail: Mapped[str | None]
    """If it is invalid, a sentence that says why."""
    report: Mapped[dict[str, Any] | None]
    """amaml.dataset_report.DatasetReport; null before the check, and if the check ended without a report."""
    tries: Mapped[int] = mapped_column(server_default="0")
    """How often the check was tried since the latest upload of the file."""
    blob_id: Mapped[UUID] = mapped_column(ForeignKey(Blob.id))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    checked_at: Mapped[datetime | None]
