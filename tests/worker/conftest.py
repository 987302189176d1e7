"""A job store of one's own, and real worker processes on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from service.core.database import engine
from service.core.tables import Base
from tests.support.databases import new_database
from tests.support.receiver import Receiver, receiving
from tests.support.waiting import CEILING_SECONDS
from tests.support.workers import STUB, WorkerProcess, Workers
from worker.processes.parent import AdapterProcess


@pytest.fixture(scope="session")
def database(postgres_url: URL, template_database: URL) -> Iterator[str]:
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, which the store's functions use."""
    monkeypatch.setenv("AMAML_DATABASE_URL", database)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with engine().begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}"))
    return database


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks, which listens on this machine."""
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def workers(shared_store: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers with real trainers."""
    with Workers(shared_store, valkey_url, tmp_path_factory.mktemp("home")) as workers:
        yield workers


@pytest.fixture(scope="module")
def worker(workers: Workers) -> WorkerProcess:
    """One of them, which is ready."""
    return workers.start_ready()


@pytest.fixture(scope="module")
def stubbed_workers(shared_store: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers with a stub for the trainer, where the test is of the worker."""
    with Workers(shared_store, valkey_url, tmp_path_factory.mktemp("home"), STUB) as workers:
        yield workers


@pytest.fixture(scope="module")
def adapter() -> Iterator[AdapterProcess]:
    """An adapter by itself, without a worker."""
    adapter = AdapterProcess(1 << 30)
    assert adapter.wait_until_ready(CEILING_SECONDS) is not None
    yield adapter
    adapter.kill()
