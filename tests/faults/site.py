"""A whole site in a temporary folder: what `make up` starts, two more workers beside its own, and accidents to all of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psycopg
import redis
from celery import Celery
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from launcher.children import Child, Command
from launcher.leftovers import has_ended
from launcher.log import Log
from launcher.ports import HOST, free_port
from service.core.database import engine, is_away, transaction
from service.jobs.tables import Attempt
from tests.support.databases import ROOT
from tests.support.workers import command_of, parent_of, state_of
from worker.maintenance.outbox import TASK

LEASE_SECONDS = 3.0
MORE_WORKERS = 2
CLOCK_OFF_SECONDS = -17 * 60
"""Of one of them, where the machine has a C compiler."""
QUEUE = "amaml"
READY_SECONDS = 180.0


class Site:
    """`start` gives a site that runs, `keep_alive` starts again what has ended, `stop` ends all of it.

    The launcher keeps its own children alive: PostgreSQL, Valkey, API and a worker.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.log_file = folder / "log"
        self._stream = self.log_file.open("w")
        self._log = Log(self._stream)
        self._shim = _compiled(folder)
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        own = {name: value for name, value in os.environ.items() if not name.startswith("AMAML_")}
        self._settings = {
            **own,
            "AMAML_HOME": str(self.home),
            "AMAML_PORT": str(port),
            "AMAML_LEASE_SECONDS": str(LEASE_SECONDS),
            "AMAML_KERNEL": "off",  # some milliseconds an iteration: time enough for accidents amid a job
            "AMAML_ADAPTERS": "0",  # nothing is adapted here, and each takes seconds to start again
            "PYTHONUNBUFFERED": "1",
        }
        self._launcher = self._python("launcher", self._settings, "launcher", "up", stop_seconds=30)
        self.environment: dict[str, str] = {}
        self.more_workers: list[Child] = []
        self._outlived: list[str] = []

    def start(self) -> None:
        self._launcher.start()
        ready = seen((self.home / "url").exists, READY_SECONDS, 0.1)
        assert ready, f"the launcher isn't ready: {self.log_file.read_text()[-4000:]}"
        environ = Path(f"/proc/{self.children['api']}/environ").read_text().split("\0")
        self.environment = dict(each.partition("=")[::2] for each in environ if "=" in each)
        os.environ["AMAML_DATABASE_URL"] = self.environment["AMAML_DATABASE_URL"]
        self.key = (self.home / "admin.key").read_text().strip()
        self.more_workers = [
            self._python(
                f"worker-{number}", {**self.environment, **self._clock(number)}, "celery", "-A", "worker.main", "worker"
            )
            for number in range(MORE_WORKERS)
        ]
        for worker in self.more_workers:
            worker.start()

    def keep_alive(self) -> None:
        """Starts what has ended, as whoever watches over a service does."""
        for worker in self.more_workers:
            if worker.status() is not None and time.monotonic() - worker.started_at > 1:
                worker.start()

    def stop(self) -> None:
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for child in (*self.more_workers, self._launcher):
            child.stop()
        self._stream.close()

    def outlived(self) -> list[str]:
        """A sentence for each process that was there when it should have been gone."""
        left = [f"{command} was left over" for command in processes_of(self.home)]
        return self._outlived + left

    @property
    def children(self) -> dict[str, int]:
        """Of the launcher, by name."""
        return {each["name"]: each["pid"] for each in json.loads((self.home / "children.json").read_text())}

    @property
    def workers(self) -> list[int]:
        """Process ids of those that run."""
        own = self.children.get("worker") if (self.home / "children.json").exists() else None
        pids = [*([own] if own is not None else []), *(each.pid for each in self.more_workers)]
        return [pid for pid in pids if not has_ended(pid)]

    def busy_trainers(self) -> list[int]:
        """Process ids of trainers that have a job now; none while the database is away."""
        busy = select(Attempt.trainer_pid).where(Attempt.ended_at.is_(None))
        try:
            with transaction() as session:
                pids = list(session.scalars(busy))
        except DBAPIError as error:
            if not is_away(error):
                raise
            return []
        return [pid for pid in pids if pid is not None and not has_ended(pid) and b"worker.trainer" in command_of(pid)]

    def clock_off(self) -> float:
        """Seconds by which the wall clock of a process like the last worker's is off, as it itself reads it."""
        show = [sys.executable, "-c", "import time; print(time.time())"]
        environment = {**self.environment, **self._clock(MORE_WORKERS - 1)}
        shown = subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout
        return float(shown) - time.time()

    # Accidents: each gives whether it was seen to happen

    def kill(self, name: str) -> bool:
        """A child of the launcher, unless it is just being started again."""
        return name in (children := self.children) and self._end(children[name], signal.SIGKILL)

    def restart(self, name: str) -> bool:
        return name in (children := self.children) and self._end(children[name], signal.SIGINT)

    def kill_pid(self, pid: int) -> bool:
        return self._end(pid, signal.SIGKILL)

    def kill_launcher(self) -> bool:
        """With it dies all that it has started, and the site is started again on the same home."""
        children = self.children  # without the worker, while it is being started again
        trainers = self._trainers_of(children["worker"]) if "worker" in children else []
        mine = {**children, **{f"trainer {pid}": pid for pid in trainers}}
        database = self.environment["AMAML_DATABASE_URL"]
        died = self._end(self._launcher.pid, signal.SIGKILL)
        self._launcher.stop()  # to the end of its last thread: its first can be gone before the others
        seen(lambda: all(map(has_ended, mine.values())), 15)
        self._outlived += [f"{name} outlived the launcher" for name, pid in mine.items() if not has_ended(pid)]
        for worker in self.more_workers:  # their stores are gone, and come back elsewhere
            if worker.status() is None:
                os.kill(worker.pid, signal.SIGKILL)
            worker.stop()
        engine(database).dispose()
        (self.home / "url").unlink(missing_ok=True)
        self.start()
        return died

    def freeze(self, pid: int) -> bool:
        """Until `thaw`."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        return seen(lambda: state_of(pid) == "T", 2)

    def thaw(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def flush_broker(self) -> bool:
        """Whether it took it, and had anything to forget."""
        try:
            with self._broker() as broker:
                held = broker.dbsize()
                return bool(broker.flushall()) and held != 0
        except redis.RedisError:
            return False

    def repeat_messages(self) -> bool:
        """Whether the broker has taken ten wake-ups that nothing caused."""
        try:
            with self._broker() as broker:
                broker.ping()
                app = Celery(broker=self.environment["AMAML_BROKER_URL"])
                for _ in range(10):
                    app.send_task(TASK, queue=QUEUE, retry=False)
                return True
        except (redis.RedisError, ConnectionError, OSError):
            return False

    def cut_connections(self) -> bool:
        """Whether Postgres has cut any: all that API and workers had."""
        url = make_url(self.environment["AMAML_DATABASE_URL"]).set(drivername="postgresql")
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        query = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}".encode()  # noqa: S608
        try:
            with psycopg.connect(url.render_as_string(hide_password=False), connect_timeout=2) as connection:
                row = connection.execute(query).fetchone()
                return row is not None and row[0] > 0
        except psycopg.OperationalError:
            return False

    def _broker(self) -> redis.Redis:
        return redis.Redis.from_url(self.environment["AMAML_BROKER_URL"], socket_timeout=2)

    def _end(self, pid: int, number: signal.Signals) -> bool:
        if has_ended(pid):
            return False
        os.kill(pid, number)
        return seen(lambda: has_ended(pid))

    def _trainers_of(self, worker: int) -> list[int]:
        pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in pids if parent_of(pid) == worker and b"worker.trainer" in command_of(pid)]

    def _clock(self, worker: int) -> dict[str, str]:
        """Of the last worker the clock is off."""
        if worker != MORE_WORKERS - 1 or self._shim is None:
            return {}
        return {"LD_PRELOAD": str(self._shim), "AMAML_TEST_CLOCK_OFF": str(CLOCK_OFF_SECONDS)}

    def _python(self, name: str, environment: Mapping[str, str], *module: str, stop_seconds: float = 15) -> Child:
        argv = [sys.executable, "-m", *module]
        return Child(Command(name, argv, environment, folder=ROOT, stop_seconds=stop_seconds), self._log)


def seen(what: Callable[[], bool], seconds: float = 8.0, every: float = 0.02) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not (happened := what()) and time.monotonic() < deadline:
        time.sleep(every)
    return happened


def processes_of(home: Path) -> list[str]:
    """The command of every process that has this home in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if f"AMAML_HOME={home}\0".encode() in (folder / "environ").read_bytes() and not has_ended(int(folder.name)):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def _compiled(folder: Path) -> Path | None:
    """The clock that is off, as a library to preload; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"], check=True)
    return library
