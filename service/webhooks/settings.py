"""The settings of webhooks that API and workers read from their environment, which must be the same for both."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any

from cryptography.fernet import Fernet
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MINUTE, HOUR = 60.0, 3600.0

Network = IPv4Network | IPv6Network


class WebhookSettings(BaseSettings):
    """Each field is the environment variable AMAML_WEBHOOK_ and its name; lists are separated by commas."""

    model_config = SettingsConfigDict(env_prefix="AMAML_WEBHOOK_", hide_input_in_errors=True)

    allow_http: bool = False
    """Whether a webhook's URL may begin with http://."""
    networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks beside the public internet that webhooks may reach: `10.1.0.0/16,fd00::/8`."""
    keys: Annotated[tuple[str, ...], NoDecode] = Field(default=(), repr=False)
    """Fernet keys that secrets are encrypted with in the database: the first encrypts, all of them decrypt."""
    retry_seconds: Annotated[tuple[float, ...], NoDecode] = (
        0, 5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR,
    )  # fmt: skip
    """Pauses before the first attempt, the second, …: there are as many attempts as numbers."""
    connect_seconds: float = Field(default=5.0, gt=0, le=60)
    seconds: float = Field(default=15.0, gt=0, le=120)
    """Time limit of a whole attempt, from resolving the name to reading the answer."""
    failing_days: float = Field(default=5.0, gt=0)
    """A webhook to which nothing could be delivered for so long is disabled."""
    senders: int = Field(default=4, ge=0, le=64)
    """Deliveries that a worker process sends at once; 0: it sends none."""

    @field_validator("networks", "keys", "retry_seconds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("keys")
    @classmethod
    def _keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            Fernet(key)
        return value

    @field_validator("retry_seconds")
    @classmethod
    def _retries(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(value) <= 50 or any(not 0 <= seconds <= 30 * 24 * HOUR for seconds in value):
            raise ValueError("give 1 to 50 pauses, each of 0 seconds to 30 days")
        return value


@lru_cache(maxsize=1)
def settings() -> WebhookSettings:
    """Read once."""
    return WebhookSettings()
