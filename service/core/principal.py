"""The caller of a request, as its API key identifies it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Principal(NamedTuple):
    """A key and the workspace to which it gives access."""

    key_id: UUID
    workspace_id: UUID
    scopes: tuple[str, ...]
    """What the key may do: members of service.keys.scopes.GRANTS."""
    expires_at: datetime | None
