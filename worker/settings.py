"""What a worker reads from its environment."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field is the environment variable AMAML_ and its name."""

    model_config = SettingsConfigDict(env_prefix="AMAML_")

    broker_url: str
    lease_seconds: float = Field(default=15.0, ge=1, le=3600)
    """How long a claim holds without a renewal: a dead worker's job is taken up again after that long."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """How long a trainer may go without telling that it got further, before it counts as stalled."""
    shutdown_seconds: float = Field(default=10.0, gt=0)
    """How long a worker that was told to end waits for its trainers' checkpoints."""
    worker_slots: int = Field(default=1, ge=1, le=64)
    """Jobs run at once."""
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
def settings() -> Settings:
    """Read once."""
    return Settings()  # type: ignore[call-arg] # what is missing is read from the environment
