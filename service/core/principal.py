"""Who calls: what a request's API key stands for."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Principal(NamedTuple):
    """Who calls: a key and the workspace that it opens."""

    key_id: UUID
    workspace_id: UUID
    scopes: tuple[str, ...]
    """What the key may do: of service.keys.scopes.GRANTS."""
    expires_at: datetime | None
