"""What a worker reads from its environment."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """Each field is the environment variable AMAML_ and its name."""

    model_config = SettingsConfigDict(env_prefix="AMAML_")

    broker_url: str
    lease_seconds: float = Field(default=15.0, ge=1, le=3600)
    """How long a lease lasts without a renewal: a dead worker's job is taken up again after that time."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """A trainer that reports no progress for that long counts as stalled."""
    shutdown_seconds: float = Field(default=10.0, gt=0)
    """How long a worker that is to end waits for its trainers' checkpoints."""
    worker_slots: int = Field(default=1, ge=1, le=64)
    """Jobs run at once."""
    dataset_check_seconds: float = Field(default=120.0, gt=0, le=3600)
    """A data set whose check takes longer is invalid."""
    dataset_check_memory_bytes: int = Field(default=1 << 30, ge=256 << 20)
    """Address space that a check may use beside the file's own size; a data set that needs more is invalid."""
    adapters: int = Field(default=1, ge=0, le=16)
    """Adapters of this worker: processes that adapt one initialization at a time, and take about 300 MB of memory each."""
    adaptation_seconds: float = Field(default=60.0, gt=0, le=3600)
    """An adaptation that takes longer fails."""
    adaptation_memory_bytes: int = Field(default=2 << 30, ge=64 << 20)
    """Memory that an adaptation may use beyond that of an idle adapter; one that needs more fails."""
    adaptation_hours: float = Field(default=24.0, gt=0, le=87_600)
    """How long adaptations are kept after they were asked for."""
    home: Path | None = None
    """Where attempts keep their files while they run; the system's folder for temporary files where it isn't set."""

    @property
    def folder(self) -> Path:
        return (self.home or Path(tempfile.gettempdir()) / f"amaml-{os.getuid()}") / "attempts"

    @property
    def threads_per_slot(self) -> int:
        """Cores that this process may use, shared out among the slots."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.worker_slots)


@lru_cache(maxsize=1)
def settings() -> WorkerSettings:
    """Read once."""
    return WorkerSettings()  # type: ignore[call-arg] # what is missing is read from the environment
