"""A job store of one's own, jobs small enough for a test, and real worker processes."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import URL

from amaml.spec import JobSpec
from service.store import events, outbox
from service.store.blobs import read
from service.store.database import engine, transaction
from service.store.states import become
from service.store.tables import Attempt, Base, Event, Job, Metric, Worker, Workspace
from service.store.transitions import FINAL, State
from tests.conftest import execute, url_text

T = TypeVar("T")

LEASE_SECONDS = 2.0


@pytest.fixture(scope="session")
def database(postgres_url: URL, template_database: URL) -> Iterator[str]:
    with _new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, which the store's functions use."""
    monkeypatch.setenv("AMAML_DATABASE_URL", database)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with engine().begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}"))
    return database


@pytest.fixture(scope="module")
def shared_store(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """A database for all tests of a module, which the store's functions use."""
    with _new_database(postgres_url, template_database) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMAML_DATABASE_URL", url)
        yield url


@contextmanager
def _new_database(server: URL, template: URL) -> Iterator[str]:
    name = f"amaml_test_{secrets.token_hex(8)}"
    execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template.database}"')
    url = url_text(server.set(database=name))
    yield url
    engine(url).dispose()
    execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


class WorkerProcess:
    """A worker as the launcher starts it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name("celery")), "-A", "worker.app", "worker"]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        return self._process.wait(seconds)

    def wait_until_ready(self) -> None:
        """Until it has told the store that it lives."""

        def is_ready() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            with transaction() as session:
                return session.scalar(select(Worker.pid).where(Worker.pid == self.pid)) is not None

        wait_until(is_ready, 90)

    def trainer_of(self, job_id: UUID, attempt: int | None = None) -> int | None:
        """The process id of the trainer that took up the job last on this worker, or for that attempt."""
        number = r"\d+" if attempt is None else attempt
        found = re.findall(rf"job {job_id}: attempt {number} begins in trainer (\d+)", self.log.read_text())
        return int(found[-1]) if found else None

    def stop(self) -> None:
        """Ends it in good order; fails if that takes too long."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.wait()
            raise


class Workers:
    """Starts workers on one store, broker and home."""

    def __init__(self, database_url: str, broker_url: str, home: Path) -> None:
        self.environment = {
            **os.environ,
            "AMAML_DATABASE_URL": database_url,
            "AMAML_BROKER_URL": broker_url,
            "AMAML_HOME": str(home),
            "AMAML_LEASE_SECONDS": str(LEASE_SECONDS),
            "AMAML_SHUTDOWN_SECONDS": "6",
            "AMAML_ADAPTERS": "0",  # a test that adapts asks for one
            "AMAML_KERNEL": "off",  # some milliseconds an iteration: time enough for accidents to happen amid a job
        }
        self.home = home
        self._started: list[WorkerProcess] = []

    def start(self, **environment: str) -> WorkerProcess:
        worker = WorkerProcess({**self.environment, **environment}, self.home / f"worker-{len(self._started)}.log")
        self._started.append(worker)
        return worker

    def stop(self) -> None:
        with ExitStack() as stack:  # a worker that fails to end must not keep the others alive
            for worker in self._started:
                if worker.is_alive:
                    stack.callback(worker.stop)


@pytest.fixture(scope="module")
def workers(shared_store: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    workers = Workers(shared_store, valkey_url, tmp_path_factory.mktemp("home"))
    yield workers
    workers.stop()


def spec(
    iterations: int = 20,
    *,
    seed: int = 0,
    meta: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    **runtime: Any,
) -> JobSpec:
    """A job of some milliseconds an iteration."""
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "family": {"kind": "sinusoid", "shots": 5, "queries": 5, "test_tasks": 2},
                "model": {"kind": "mlp", "hidden": [8]},
                "trajectory": {"length": 0.5},
                "solver": {"kind": "euler", "step": 0.1},
                "meta": {"iterations": iterations, "tasks_per_batch": 2, **(meta or {})},
                "evaluation": evaluation or {"every": 1_000_000, "tasks": 2, "epochs": 5},
                "runtime": {"seed": seed, "threads": 1, "checkpoint_every": 10, **runtime},
            }
        )
    )


def submit(spec: JobSpec, *, wake: bool = True) -> UUID:
    """As the API does: job, event and wake-up in one transaction."""
    with transaction() as session:
        workspace = session.scalars(select(Workspace)).first()
        if workspace is None:
            workspace = Workspace(name="default")
            session.add(workspace)
            session.flush()
        job = Job(
            workspace_id=workspace.id,
            name=spec.name,
            tags=spec.tags,
            spec=spec.model_dump(mode="json"),
            spec_sha256=spec.sha256(),
            family=spec.family.kind,
            method=spec.method.kind,
            device=spec.runtime.device,
            iterations=spec.meta.iterations,
            init_from_id=spec.meta.init_from.job if spec.meta.init_from else None,
        )
        session.add(job)
        session.flush()
        events.append(session, job.id, "state", {"state": "queued", "from": None, "reason": None, "detail": None})
        if wake:
            outbox.put(session, "wake")
        return job.id


def ask(job_id: UUID, target: State) -> None:
    """The user asks for it."""
    with transaction() as session:
        job = session.get_one(Job, job_id, with_for_update=True)
        become(session, job, target)
        if target == "queued":
            outbox.put(session, "wake")


def job_of(job_id: UUID) -> Job:
    with transaction() as session:
        return session.get_one(Job, job_id)


def attempts_of(job_id: UUID) -> list[Attempt]:
    with transaction() as session:
        return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def events_of(job_id: UUID) -> list[Event]:
    with transaction() as session:
        return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))


def metrics_of(job_id: UUID) -> dict[str, dict[int, float]]:
    with transaction() as session:
        found: dict[str, dict[int, float]] = {}
        for metric in session.scalars(select(Metric).where(Metric.job_id == job_id).order_by(Metric.step)):
            found.setdefault(metric.name, {})[metric.step] = metric.value
        return found


def wait_until(what: Callable[[], T], seconds: float = 40.0) -> T:
    """What the function gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return value


def wait_for(job_id: UUID, *states: State, seconds: float = 60.0) -> Job:
    """The job once it is in one of the states; fails as soon as it has ended in another."""

    def reached() -> Job | None:
        job = job_of(job_id)
        assert job.state in states or job.state not in FINAL, f"{job.state}: {job.status_detail}"
        return job if job.state in states else None

    return wait_until(reached, seconds)


def wait_for_iteration(job_id: UUID, iteration: int) -> Job:
    def reached() -> Job | None:
        job = job_of(job_id)
        assert job.state not in FINAL, f"it ended too soon: {job.state}, {job.status_detail}"
        return job if job.state == "running" and job.iteration >= iteration else None

    return wait_until(reached, 60.0)


def result_of(job_id: UUID) -> dict[str, str]:
    """The metadata of the job's initialization, which holds the hash of its tensors."""
    job = job_of(job_id)
    assert job.initialization_blob_id is not None
    data = b"".join(read(job.initialization_blob_id))
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def is_gone(pid: int) -> bool:
    """Whether the process has ended (it may still be a zombie of a stopped parent)."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
