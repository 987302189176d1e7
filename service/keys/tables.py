"""The table of API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Base, Workspace, now, uuid7


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of the key, hexadecimal: the key itself has 256 random bits, so no slow hash is needed."""
    prefix: Mapped[str]
    """The key's first characters, by which its owner recognizes it."""
    scopes: Mapped[list[Any]]
    """What it may do: members of service.keys.scopes.GRANTS."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """When it expires; null: never."""
    revoked_at: Mapped[datetime | None]
