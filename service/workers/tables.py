"""The table of worker processes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Base, now

LIVE_WITHIN: Final = timedelta(seconds=10)
"""A worker that hasn't reported for this long counts as lost."""


class Worker(Base):
    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    devices: Mapped[list[Any]]
    """Devices on which it can run jobs: ["cpu"] or ["cpu", "cuda"]."""
    gpu: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """`name`, `memory_bytes` and `uuid` of the GPU that its jobs run on, where it has one."""
    started_at: Mapped[datetime] = mapped_column(server_default=now)
    seen_at: Mapped[datetime] = mapped_column(server_default=now)
