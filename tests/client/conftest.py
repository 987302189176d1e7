"""A real API process on a real PostgreSQL for the client's tests, and a connection to it that can be cut."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, update
from sqlalchemy.engine import URL

from amaml_client import Client
from launcher.ports import HOST, free_port
from service.store import adaptations, blobs, events, progress, states
from service.store.database import engine, transaction
from service.store.tables import Job
from tests.conftest import execute, url_text
from worker.dataset_checks import DatasetChecks
from worker.duty import Duty
from worker.settings import Settings

WEBHOOKS = {"AMAML_WEBHOOK_ALLOW_HTTP": "true", "AMAML_WEBHOOK_NETWORKS": "127.0.0.0/8"}
AMAML = str(Path(sys.executable).with_name("amaml"))


@dataclass
class Server:
    """The API as a process of its own, without a worker: jobs do what a test says."""

    port: int
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "service.api.app:app", "--http", "h11", "--log-level", "warning"]
        self.process = subprocess.Popen([*command, "--host", HOST, "--port", str(self.port)], env=self.environment)
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()  # noqa: S310 - our own loopback address
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, "the API ended before it answered"
                assert time.monotonic() < deadline, "the API doesn't answer"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, job_id: str, content: bytes) -> None:
        """Lets the job run and succeed with `content` as its initialization."""
        with transaction() as session:
            written = blobs.write([content])
            job = session.get_one(Job, UUID(job_id))
            job.attempt, job.lease_expires_at, job.started_at = (
                1,
                func.now() + func.make_interval(0, 0, 0, 1),
                func.now(),
            )
            states.become(session, job, "running")
            job.iteration = job.iterations
            job.metrics = {"meta_loss": 0.25, "nrmse_flow": 0.5}
            job.initialization_blob_id, job.parameters = written.blob_id, 7
            blobs.give(session, written.blob_id, job.workspace_id)
            states.become(session, job, "succeeded")

    def fail(self, job_id: str) -> None:
        with transaction() as session:
            job = session.get_one(Job, UUID(job_id))
            job.attempt, job.lease_expires_at, job.started_at = (
                1,
                func.now() + func.make_interval(0, 0, 0, 1),
                func.now(),
            )
            states.become(session, job, "running")
            states.become(session, job, "failed", reason="diverged", detail="lower meta.optimizer.lr")

    @contextmanager
    def checking(self) -> Iterator[None]:
        """A worker's checks of data sets, as long as the block runs."""
        stopping = threading.Event()
        settings = Settings(broker_url="redis://none")
        checks = Duty("data sets", DatasetChecks(settings, self.home, stopping).step, 0.05, stopping)
        checks.start()
        yield
        stopping.set()
        checks.join()

    @contextmanager
    def adapting(self, weights: bytes | None = None, **failure: str) -> Iterator[list[dict[str, Any]]]:
        """A worker that answers each adaptation with 0.5 at every query row, or that failure; what it was asked."""
        stopping, asked = threading.Event(), []

        def step() -> None:
            with transaction() as session:
                taken = adaptations.take_next(session, timedelta(seconds=30))
            if taken is None:
                return
            asked.append(taken.request)
            query = (taken.request["query"] or {"x": []})["x"]
            curve = {"over": "t", "at": [0.0, 2.0], "support": [1.0, 0.25], "query": None}
            result = {"outputs": ["y"], "predictions": [[0.5] for _ in query], "curve": curve}
            written = None if weights is None else blobs.write([weights])
            with transaction() as session:
                if failure:
                    adaptations.fail(session, taken, **failure)
                else:
                    adaptations.succeed(session, taken, result, written and written.blob_id)

        duty = Duty("adaptations", step, 0.02, stopping)
        duty.start()
        yield asked
        stopping.set()
        duty.join()

    def progress(self, job_id: str, **data: Any) -> None:
        with transaction() as session:
            events.append(session, UUID(job_id), "progress", data)
            session.execute(update(Job).where(Job.id == UUID(job_id)).values(iteration=data.get("iteration", 0)))

    def measure(self, job_id: str, name: str, points: list[tuple[int, float]]) -> None:
        with transaction() as session:
            progress.add_metrics(session, session.get_one(Job, UUID(job_id)), {name: points})


@pytest.fixture(scope="session")
def server(postgres_url: URL, template_database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    name = f"amaml_test_{secrets.token_hex(8)}"
    execute(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database.database}"')
    url = url_text(postgres_url.set(database=name))
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "AMAML_DATABASE_URL": url, "AMAML_HOME": str(home), **WEBHOOKS}
    subprocess.run([sys.executable, "-m", "service.admin", "bootstrap"], env=environment, check=True)
    running = Server(free_port(), home, environment)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMAML_DATABASE_URL", url)
        yield running
    running.stop()
    engine(url).dispose()
    execute(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, server.key) as client:
        yield client


@dataclass
class Wire:
    """A TCP connection's worth of proxy before the server; the first connections are cut after so many answer bytes."""

    target: int
    cuts: list[int] = field(default_factory=list)
    """Answer bytes of the first, second, … connection before it is cut."""
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                near, _ = self._listener.accept()
                left = self.cuts[self.connections] if self.connections < len(self.cuts) else None
                self.connections += 1
                far = socket.create_connection((HOST, self.target))
                threading.Thread(target=_pump, args=(near, far, None), daemon=True).start()
                threading.Thread(target=_pump, args=(far, near, left), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, left: int | None) -> None:
    """Carries bytes over until either end closes, or `left` bytes are through; then closes both."""
    with suppress(OSError):
        while left is None or left > 0:
            piece = source.recv(65536 if left is None else min(left, 65536))
            if not piece:
                break
            target.sendall(piece)
            left = None if left is None else left - len(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.close()
