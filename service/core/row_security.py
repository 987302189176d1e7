"""Row security: while a request is served, the database shows the rows of one workspace alone.

Queries already select by workspace; this is a second, independent protection. Postgres' row-level policies, which the revisions
under migrations/ create for every table with a workspace's rows, restrict the role ROLE to the workspace that SETTING names, and
transactions of the API act in that role. At its beginning a request sees no workspace, and after authentication that of its key.
Workers, migrations and the command line act as the database's login, which owns the tables and sees everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

ROLE: Final = "amaml_api"
SETTING: Final = "amaml.workspace"

_NOTHING: Final = ""
_confined_to: ContextVar[str | None] = ContextVar("confined_to", default=None)
"""The workspace that transactions see which begin now; None: all workspaces."""

# Both settings in one statement, which takes one round trip; both end with the transaction.
_CONFINE: Final = text("SELECT set_config('role', :role, true), set_config(:setting, :workspace, true)")


@contextmanager
def confined() -> Iterator[None]:
    """Transactions that begin inside, in this task or its threads, see no workspace, or the one that `enter` names."""
    with _acting(_NOTHING):
        yield


def enter(workspace_id: UUID) -> None:
    """From now on the transactions within `confined` see this workspace."""
    _confined_to.set(str(workspace_id))


@contextmanager
def across_workspaces() -> Iterator[None]:
    """Transactions that begin inside see everything, also within `confined`: to authenticate a key, to count for Prometheus."""
    with _acting(None):
        yield


def workspace() -> UUID | None:
    """The only workspace that transactions see which begin now; None if they see none, or all."""
    name = _confined_to.get()
    return UUID(name) if name else None


def apply(session: Session) -> None:
    """Restricts the session's transaction to the rows that it may see; must be its first statement."""
    name = _confined_to.get()
    if name is not None:
        session.execute(_CONFINE, {"role": ROLE, "setting": SETTING, "workspace": name})


@contextmanager
def _acting(name: str | None) -> Iterator[None]:
    token = _confined_to.set(name)
    try:
        yield
    finally:
        _confined_to.reset(token)
