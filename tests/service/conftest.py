"""The API as a real process on a real database; a workspace and a key of its own for every test."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import URL

from launcher.ports import free_port
from service.store import attempts, blobs, keys, workers
from service.store.database import engine, transaction
from service.store.states import become
from service.store.tables import Attempt, Job
from tests.conftest import execute, url_text

SPEC: dict[str, Any] = {"family": {"kind": "sinusoid"}, "meta": {"iterations": 3}}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def service_database(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """One database for all tests here; workspaces keep them apart."""
    name = f"amaml_test_{secrets.token_hex(8)}"
    execute(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database.database}"')
    url = url_text(postgres_url.set(database=name))
    yield url
    engine(url).dispose()
    execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def store(service_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that the store's functions use here, and the API in its process."""
    monkeypatch.setenv("AMAML_DATABASE_URL", service_database)
    return service_database


class Api(NamedTuple):
    url: str
    pid: int
    log: Path


@pytest.fixture(scope="session")
def api(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API, started as the launcher starts it."""
    log = tmp_path_factory.mktemp("api") / "log"
    with serving(service_database, log) as running:
        yield running


class serving:  # noqa: N801 - used as a function
    """The API on a database, as a context manager."""

    def __init__(self, database: str, log: Path, **settings: str) -> None:
        self._environment = {**os.environ, "AMAML_DATABASE_URL": database, **settings}
        self._log = log

    def __enter__(self) -> Api:
        port = free_port()
        arguments = ["--port", str(port), "--http", "h11", "--no-access-log", "--timeout-graceful-shutdown", "2"]
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "service.api.app:app", *arguments],
                env=self._environment, stdout=stream, stderr=stream,
            )  # fmt: skip
        running = Api(f"http://127.0.0.1:{port}", self._process.pid, self._log)
        try:
            eventually(lambda: self._answers(running.url), 60)
        except AssertionError:
            self.__exit__()
            raise AssertionError(self._log.read_text()) from None
        return running

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()

    def _answers(self, url: str) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


class Tenant(NamedTuple):
    workspace_id: UUID
    key: str


@pytest.fixture
def tenant(store: str) -> Tenant:
    return new_tenant()


def new_tenant() -> Tenant:
    with transaction() as session:
        workspace_id = keys.ensure_workspace(session, f"test-{uuid4()}")
        _, key = keys.add(session, workspace_id, "test")
    return Tenant(workspace_id, key)


@pytest.fixture
def http(api: Api, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client with the test's own key."""
    with client(api, tenant) as ready:
        yield ready


def client(api: Api, tenant: Tenant) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {tenant.key}"}, timeout=30, verify=False)


def submit(http: httpx.Client, **changes: Any) -> str:
    answer = http.post("/v1/jobs", json={**SPEC, **changes})
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def start(job_id: str) -> None:
    """What a worker's claim does to this job's row."""
    with transaction() as session:
        job = _locked(session, job_id)
        job.attempt += 1
        job.lease_expires_at = func.now() + timedelta(minutes=5)  # type: ignore[assignment]
        job.started_at = func.now()  # type: ignore[assignment]
        session.add(Attempt(job_id=job.id, number=job.attempt, worker_id=uuid4(), host="here"))
        become(session, job, "running")


def succeed(job_id: str, initialization: bytes) -> None:
    """What a worker does when the trainer has finished."""
    written = blobs.write([initialization])
    with transaction() as session:
        attempts.succeeded(session, _locked(session, job_id), written.blob_id, 2_000)


def stop(job_id: str) -> None:
    """What a worker does when the trainer has stopped."""
    with transaction() as session:
        attempts.stopped(session, _locked(session, job_id))


def _locked(session: Any, job_id: str) -> Job:
    found: Job = session.scalars(select(Job).where(Job.id == UUID(job_id)).with_for_update()).one()
    return found


def worker_seen() -> UUID:
    worker_id = uuid4()
    with transaction() as session:
        workers.seen(session, worker_id, "here", 1, ["cpu"])
    return worker_id


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not so within {seconds} s"
        time.sleep(0.05)


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is that problem, whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:amaml:problem:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    return document
