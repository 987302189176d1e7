"""A real PostgreSQL and a real Valkey for the whole test session, or those that two environment variables name."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import psycopg
import pytest
import redis
from sqlalchemy.engine import URL, make_url

from launcher import postgres, valkey
from launcher.log import Log

ROOT = Path(__file__).parents[1]
NO_DURABILITY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
TEMPLATE = "amaml_test_template"


# A shell that starts the suite in the background has it ignore Ctrl-C, and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A running PostgreSQL: its maintenance database."""
    given = os.environ.get("AMAML_TEST_DATABASE_URL")
    if given:
        yield make_url(given)
        return
    folder = tmp_path_factory.mktemp("postgres")
    with (folder / "log").open("w") as stream:
        server, url = postgres.start(folder, "test", Log(stream), Event(), NO_DURABILITY)
        yield make_url(url)
        server.stop()


@pytest.fixture(scope="session")
def template_database(postgres_url: URL) -> Iterator[URL]:
    """A database migrated to the newest schema, never written to: each test's own is a copy of it."""
    name = f"{TEMPLATE}_{secrets.token_hex(4)}"
    url = postgres_url.set(database=name)
    execute(postgres_url, f'CREATE DATABASE "{name}"')
    migrate(url)
    yield url
    execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """A fresh database with the newest schema and no rows, as AMAML_DATABASE_URL wants it."""
    name = f"amaml_test_{secrets.token_hex(8)}"
    execute(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database.database}"')
    yield url_text(postgres_url.set(database=name))
    execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def empty_database_url(postgres_url: URL) -> Iterator[str]:
    """A fresh database without any schema."""
    name = f"amaml_test_{secrets.token_hex(8)}"
    execute(postgres_url, f'CREATE DATABASE "{name}"')
    yield url_text(postgres_url.set(database=name))
    execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Valkey."""
    given = os.environ.get("AMAML_TEST_BROKER_URL")
    if given:
        yield given
        return
    folder = tmp_path_factory.mktemp("valkey")
    with (folder / "log").open("w") as stream:
        server, url = valkey.start(folder / "data", "test", Log(stream), Event())
        yield url
        server.stop()


@pytest.fixture
def broker_url(valkey_url: str) -> str:
    """The session's broker, without any key, as AMAML_BROKER_URL wants it."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushdb()
    return valkey_url


def migrate(url: URL) -> None:
    """Bring the database's schema to the newest, as operators do."""
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"]
    environment = {**os.environ, "AMAML_DATABASE_URL": url_text(url)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def execute(url: URL, statement: str) -> None:
    """Run one statement that can't run in a transaction."""
    with psycopg.connect(url_text(url.set(drivername="postgresql")), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


def url_text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
