"""A whole site of its own in a temporary folder: stores, API and several workers, which start again when they die."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import redis

from launcher import postgres, valkey
from launcher.log import Log
from launcher.ports import HOST, free_port
from launcher.process import Child, Command
from tests.conftest import ROOT

LEASE_SECONDS = 3.0


class Site:
    """`start` gives a site that runs, `keep_alive` starts again what has ended, `stop` ends all of it."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        self._stream = self.log_file.open("w")
        self._log = Log(self._stream)
        self.url = ""
        self._count = workers
        self._children: list[Child] = []

    def start(self) -> None:
        # The processes are killed, not the machine: what was written is kept without fsync too.
        self.postgres, database_url = postgres.start(
            self.folder / "postgres", "soak", self._log, Event(), {"fsync": "off"}
        )
        self._children.append(self.postgres)
        self.valkey, self.broker_url = valkey.start(self.folder / "valkey", "soak", self._log, Event())
        self._children.append(self.valkey)
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self._environment = {
            **os.environ,
            "AMAML_DATABASE_URL": database_url,
            "AMAML_BROKER_URL": self.broker_url,
            "AMAML_HOME": str(self.folder),
            "AMAML_LEASE_SECONDS": str(LEASE_SECONDS),
            "AMAML_KERNEL": "off",  # some milliseconds an iteration: time enough for accidents amid a job
            "PYTHONUNBUFFERED": "1",
        }
        os.environ["AMAML_DATABASE_URL"] = database_url
        self._python("migrate", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head").run(
            120, Event()
        )
        self._python("keys", "service.admin", "bootstrap").run(60, Event())
        self.key = (self.folder / "admin.key").read_text().strip()
        self.api = self._python("api", "uvicorn", "service.api.app:app", "--host", HOST, "--port", str(port))
        self.workers = [
            self._python(f"worker-{number}", "celery", "-A", "worker.app", "worker") for number in range(self._count)
        ]
        for child in (self.api, *self.workers):
            child.start()
            self._children.append(child)

    def keep_alive(self) -> None:
        """Starts what has ended, as whoever watches over a service does."""
        for child in self._children:
            if child.status() is not None and time.monotonic() - child.started_at > 1:
                child.start()

    def stop(self) -> None:
        for worker in self._children[3:]:
            if worker.status() is None:
                os.kill(worker.pid, signal.SIGCONT)
        for child in reversed(self._children):
            child.stop()
        self._stream.close()

    def trainers(self) -> list[int]:
        """Process ids of the workers' trainers that live."""
        pids = {worker.pid for worker in self.workers}
        return [
            pid for pid in map(int, (path.name for path in Path("/proc").glob("[0-9]*")))
            if _state(pid) not in (None, "Z") and _parent(pid) in pids and b"worker.trainer" in _command(pid)
        ]  # fmt: skip

    def busy_trainers(self) -> list[int]:
        """Those of them that have been given a job."""
        told = {int(pid) for pid in re.findall(r"begins in trainer (\d+)", self.log_file.read_text())}
        return [pid for pid in self.trainers() if pid in told]

    # Accidents: each gives whether it was seen to happen

    def kill(self, child: Child) -> bool:
        return self._end(child, signal.SIGKILL)

    def restart(self, child: Child) -> bool:
        return self._end(child, signal.SIGINT)

    def freeze(self, worker: Child) -> bool:
        """Until `thaw`."""
        if worker.status() is not None:
            return False
        os.kill(worker.pid, signal.SIGSTOP)
        return seen(lambda: _state(worker.pid) == "T")

    def thaw(self, worker: Child, pid: int) -> None:
        if worker.status() is None and worker.pid == pid:
            os.kill(pid, signal.SIGCONT)

    def kill_trainer(self, pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return seen(lambda: _state(pid) in (None, "Z"))

    def flush_broker(self) -> bool:
        """Whether it took it, and had anything to forget."""
        try:
            with redis.Redis.from_url(self.broker_url, socket_timeout=2) as broker:
                held = broker.dbsize()
                return bool(broker.flushall()) and held != 0
        except redis.RedisError:
            return False

    def _end(self, child: Child, number: signal.Signals) -> bool:
        if child.status() is not None:
            return False
        os.kill(child.pid, number)
        return seen(lambda: child.status() is not None)

    def _python(self, name: str, *module: str) -> Child:
        command = Command(name, [sys.executable, "-m", *module], self._environment, folder=self.folder, stop_seconds=15)
        return Child(command, self._log)


def seen(what: Callable[[], bool], seconds: float = 8.0, every: float = 0.02) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not (happened := what()) and time.monotonic() < deadline:
        time.sleep(every)
    return happened


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
