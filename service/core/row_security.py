"""The second wall between workspaces: while a request is served, the database itself shows one workspace's rows alone.

The first wall are the conditions in the queries of this package. Behind it stand Postgres' row-level policies, which
revisions under migrations/ give to every table that holds a workspace's things: a transaction of the API acts in the role
ROLE, and that role sees and writes only rows of the workspace that SETTING names. A request begins by seeing nothing;
its key then opens one workspace. Workers, migrations and the command line act as the login itself, which owns the tables.
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
"""The workspace that transactions begun here see; None: all of them."""

# Both in one statement, so that the wall costs one round trip; both end with the transaction.
_CONFINE: Final = text("SELECT set_config('role', :role, true), set_config(:setting, :workspace, true)")


@contextmanager
def confined() -> Iterator[None]:
    """Transactions begun inside, in this task or its threads, see no workspace, or the one that `enter` names."""
    with _acting(_NOTHING):
        yield


def enter(workspace_id: UUID) -> None:
    """What is `confined` sees this workspace from now on."""
    _confined_to.set(str(workspace_id))


@contextmanager
def across_workspaces() -> Iterator[None]:
    """Transactions begun inside see everything, whatever is around: to find a key's workspace, to count for Prometheus."""
    with _acting(None):
        yield


def workspace() -> UUID | None:
    """The one workspace that transactions begun here see, if it is one."""
    name = _confined_to.get()
    return UUID(name) if name else None


def apply(session: Session) -> None:
    """Puts the wall around the session's transaction, as its first statement."""
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
