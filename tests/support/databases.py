"""Databases of the session's PostgreSQL: each is a copy of a template with the newest schema."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic.config import Config
from sqlalchemy.engine import URL, make_url

from service.core.database import engine
from tests.support.waiting import CEILING_SECONDS

ROOT = Path(__file__).parents[2]
MIGRATIONS = ROOT / "migrations"


@contextmanager
def new_database(server: URL, template: URL | None = None) -> Iterator[str]:
    """The URL of a fresh database, as AMAML_DATABASE_URL wants it; it is dropped when the block ends.

    It has the template's schema, or none without a template.
    """
    name = f"amaml_test_{secrets.token_hex(8)}"
    copied = f' TEMPLATE "{template.database}"' if template else ""
    execute(server, f'CREATE DATABASE "{name}"{copied}')
    url = url_text(server.set(database=name))
    try:
        yield url
    finally:
        engine(url).dispose()
        execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def migrate(url: URL) -> None:
    """Bring the database's schema to the newest, as operators do."""
    command = [sys.executable, "-m", "alembic", "-c", str(MIGRATIONS / "alembic.ini"), "upgrade", "head"]
    environment = {**os.environ, "AMAML_DATABASE_URL": url_text(url)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alembic() -> Config:
    """Alembic in this process, which is faster; without its file, which would set up the logging of the whole process."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def execute(url: URL, statement: str) -> None:
    """Run one statement that can't run in a transaction."""
    with psycopg.connect(url_text(url.set(drivername="postgresql")), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


@contextmanager
def listening(database: str, channel: str) -> Iterator[Callable[[], str]]:
    """Gives a function that waits for the next word on the channel, of those since now."""
    url = url_text(make_url(database).set(drivername="postgresql"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"LISTEN {channel}".encode())

        def hear() -> str:
            (notice,) = connection.notifies(timeout=CEILING_SECONDS, stop_after=1)
            return notice.payload

        yield hear


def url_text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
