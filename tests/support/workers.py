"""Real worker processes, and what a test does to them: arm a failpoint, send a signal, find the trainer of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from uuid import UUID

from sqlalchemy import select

from service.core.database import transaction
from service.jobs.tables import Attempt
from service.workers.tables import Worker
from tests.support.waiting import CEILING_SECONDS, wait_until
from worker.processes import failpoint

LEASE_SECONDS = 3.0
"""Of every worker that a test starts: where one is lost, another goes on after so long."""
STUB = "tests.support.stub_trainer"
"""A trainer that speaks the protocol and trains nothing, for tests of what a worker does around it."""
REAL_TRAINERS = "AMAML_TEST_REAL_TRAINERS"
"""Environment variable: if it is set, no stub stands for a trainer."""


class WorkerProcess:
    """A worker as the launcher starts it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._armed = log.with_suffix(".failpoint")
        command = [str(Path(sys.executable).with_name("celery")), "-A", "worker.main", "worker"]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                env={failpoint.VARIABLE: f"@{self._armed}", **environment},
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def arm(self, accident: str) -> None:
        """Has the accident (place=action, see worker.processes.failpoint) happen once, in this worker or in a child of it."""
        unfinished = self._armed.with_suffix(".unfinished")
        unfinished.write_text(accident)
        failpoint.happened(self._armed).unlink(missing_ok=True)
        unfinished.rename(self._armed)

    @property
    def accident_happened(self) -> bool:
        return failpoint.happened(self._armed).exists()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(CEILING_SECONDS)

    def wait_until_ready(self) -> None:
        """Until it has told the store that it lives, which it does once it could run a job."""

        def is_ready() -> bool:
            assert self.is_alive, self.log.read_text()
            with transaction() as session:
                return session.scalar(select(Worker.pid).where(Worker.pid == self.pid)) is not None

        wait_until(is_ready)

    def runs(self, job_id: UUID) -> bool:
        """Whether the trainer of the job's newest attempt is this worker's."""
        trainer = trainer_of(job_id)
        return trainer is not None and parent_of(trainer) == self.pid

    def child(self, module: str) -> int | None:
        """The process id of a child that runs this module."""
        return child_of(self.pid, module)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stop(self) -> int:
        """Has it end in good order, and gives its exit status; fails if it doesn't end."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Workers:
    """Starts workers on one store, broker and home. `trainer`: the module that runs as their trainer."""

    def __init__(self, database_url: str, broker_url: str, home: Path, trainer: str = "worker.trainer") -> None:
        self.environment = {
            **os.environ,
            "AMAML_DATABASE_URL": database_url,
            "AMAML_BROKER_URL": broker_url,
            "AMAML_HOME": str(home),
            "AMAML_LEASE_SECONDS": str(LEASE_SECONDS),
            "AMAML_SHUTDOWN_SECONDS": "6",
            "AMAML_ADAPTERS": "0",  # a test that adapts asks for one
            "AMAML_KERNEL": "off",  # some milliseconds an iteration: time enough for accidents to happen amid a job
            "AMAML_TRAINER_MODULE": "worker.trainer" if REAL_TRAINERS in os.environ else trainer,
        }
        self.home = home
        self.started: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, **environment: str) -> WorkerProcess:
        worker = WorkerProcess({**self.environment, **environment}, self.home / f"worker-{len(self.started)}.log")
        self.started.append(worker)
        return worker

    def start_ready(self, **environment: str) -> WorkerProcess:
        worker = self.start(**environment)
        worker.wait_until_ready()
        return worker

    def holder(self, job_id: UUID) -> WorkerProcess:
        """The worker that runs the job."""
        return wait_until(lambda: next((one for one in self.living if one.runs(job_id)), None))  # type: ignore[return-value]

    @property
    def living(self) -> list[WorkerProcess]:
        return [worker for worker in self.started if worker.is_alive]

    @contextmanager
    def only(self, worker: WorkerProcess) -> Iterator[None]:
        """All others are stopped (SIGSTOP) as long as the block runs, so what comes is this one's."""
        others = [other for other in self.living if other is not worker]
        for other in others:
            other.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for other in others:
                other.signal(signal.SIGCONT)

    def stop(self) -> None:
        with ExitStack() as stack:  # a worker that fails to end must not keep the others alive
            for worker in self.living:
                stack.callback(worker.stop)


def trainer_of(job_id: UUID, attempt: int | None = None) -> int | None:
    """The process id of the trainer of that attempt, or of the newest; None before the first claim."""
    query = select(Attempt.trainer_pid).where(Attempt.job_id == job_id).order_by(Attempt.number.desc()).limit(1)
    if attempt is not None:
        query = query.where(Attempt.number == attempt)
    with transaction() as session:
        return session.scalar(query)


def child_of(parent: int, module: str) -> int | None:
    """The process id of a living child of that process that runs this module (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if parent_of(pid) == parent and module.encode() in command_of(pid).split(b"\0"):
            return pid
    return None


def is_gone(pid: int) -> bool:
    """Whether the process has ended (it may still be a zombie of a stopped parent)."""
    return state_of(pid) in (None, "Z")


def state_of(pid: int) -> str | None:
    """As Linux calls it: R, S, T for a stopped one, Z for a zombie; None for one that is gone."""
    fields = _stat(pid)
    return fields[0] if fields else None


def parent_of(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def command_of(pid: int) -> bytes:
    """Its command line, arguments parted by NUL; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _stat(pid: int) -> list[str] | None:
    """State, parent, … of the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
