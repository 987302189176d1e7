"""Whether the database has the schema that this code was written for."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

from sqlalchemy import text
from sqlalchemy.orm import Session


@lru_cache(maxsize=1)
def head() -> str | None:
    """The newest revision that is installed."""
    # Imported here because only /readyz needs it: the API starts a quarter of a second sooner.
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    package = find_spec("migrations")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("the package migrations is not installed: install the project again")
    return ScriptDirectory(package.submodule_search_locations[0]).get_current_head()


def current(session: Session) -> str | None:
    """The revision that the database is at; None for one that was never migrated."""
    if session.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
