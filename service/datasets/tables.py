"""The table of data sets, which is also the queue of their checks."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Blob, LeasedRow, Workspace, now


class Dataset(LeasedRow):
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

    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
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
    tries: Mapped[int] = mapped_column(server_default="0")
    """How often the check was tried since the file was uploaded last."""
    blob_id: Mapped[UUID] = mapped_column(ForeignKey(Blob.id))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    checked_at: Mapped[datetime | None]
