"""What the HTTP face reads from its environment."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field is the environment variable AMAML_ and its name."""

    model_config = SettingsConfigDict(env_prefix="AMAML_")

    home: Path | None = None
    """Where `python -m service.admin bootstrap` leaves the admin key."""
    max_dataset_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """A larger upload is refused."""
    log: Literal["text", "json"] = "text"
    """How the access log is written."""


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Read once."""
    return Settings()
