"""The settings that the API reads from its environment."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Each field is the environment variable AMAML_ and its name."""

    model_config = SettingsConfigDict(env_prefix="AMAML_", env_parse_none_str="")

    home: Path | None = None
    """Where `python -m service.admin bootstrap` writes the admin key."""
    max_dataset_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """A larger upload is refused."""
    upload_pause_seconds: float = Field(default=30.0, gt=0)
    """An upload is refused if nothing arrives for so long, or if after twice that time it is slower than 16 KiB/s."""
    rate_limit: float = Field(default=200.0, ge=0, le=1e6, allow_inf_nan=False)
    """Requests per second that each API key may send to this process, on average; 0: unlimited."""
    rate_burst: int = Field(default=2_000, ge=1, le=1_000_000)
    """Requests that a key may send at once after it has sent none for a while."""
    quota_queued_jobs: int | None = Field(default=10_000, ge=0)
    """For a workspace without a quota of its own, as the next three; empty: unlimited."""
    quota_running_jobs: int | None = Field(default=None, ge=1)
    quota_compute_seconds: int | None = Field(default=2_592_000, ge=0)
    """Within 24 hours: by default what 30 workers can give."""
    quota_stored_bytes: int | None = Field(default=100 << 30, ge=0)
    log: Literal["text", "json"] = "text"
    """How the access log is written."""


@lru_cache(maxsize=1)
def settings() -> ServiceSettings:
    """Read once."""
    return ServiceSettings()
