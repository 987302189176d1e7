"""A real PostgreSQL and a real Valkey for the whole test session, or those that two environment variables name.

What starts them is imported where they are asked for: tests without a store also run where only what amaml needs is installed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

NO_DURABILITY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# A shell that starts the suite in the background has it ignore Ctrl-C, and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Where several pytest processes share the cores, OpenMP threads that wait by spinning take them from whoever has work: a solve
# of two seconds took twenty.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes come first: several pytest processes (-n) then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A running PostgreSQL: its maintenance database."""
    from sqlalchemy.engine import make_url

    from launcher import postgres
    from launcher.log import Log

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
    from sqlalchemy.engine import make_url

    from tests.support.databases import migrate, new_database

    with new_database(postgres_url) as url:
        migrate(make_url(url))
        yield make_url(url)


@pytest.fixture
def database_url(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """A fresh database with the newest schema and no rows, as AMAML_DATABASE_URL wants it."""
    from tests.support.databases import new_database

    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: URL) -> Iterator[str]:
    """A fresh database without any schema."""
    from tests.support.databases import new_database

    with new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def shared_store(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """A database for all tests of a module, which the store's functions use."""
    from tests.support.databases import new_database

    with new_database(postgres_url, template_database) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMAML_DATABASE_URL", url)
        yield url


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Valkey: a database of it that no other pytest process uses."""
    from launcher import valkey
    from launcher.log import Log

    given = os.environ.get("AMAML_TEST_BROKER_URL")
    if given:
        number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield f"{given.rpartition('/')[0]}/{number}"
        return
    folder = tmp_path_factory.mktemp("valkey")
    with (folder / "log").open("w") as stream:
        server, url = valkey.start(folder / "data", "test", Log(stream), Event())
        yield url
        server.stop()


@pytest.fixture
def broker_url(valkey_url: str) -> str:
    """The session's broker, without any key, as AMAML_BROKER_URL wants it."""
    import redis

    with redis.Redis.from_url(valkey_url) as client:
        client.flushdb()
    return valkey_url
