"""The whole service on one machine: stores, API and workers, which are started in order, kept running, and ended in order."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from threading import Event

from launcher import gpus, leftovers, postgres, valkey
from launcher.children import Child, Command, StartFailed, describe, wait_until
from launcher.home import Home, write_private
from launcher.log import Log
from launcher.ports import HOST, free_port, is_free

_READY_SECONDS = 120.0
STOP_SECONDS = {"api": 3.0, "worker": 9.0}
"""The seconds that a child has to end by itself, all workers together. With the stores' times they add up to less than the 20 s
that a stop may take."""
_CHECK_SECONDS = 0.2
_FIRST_BACKOFF = 0.5
_LAST_BACKOFF = 30.0
_STEADY_SECONDS = 60.0
"""A child that ran at least this long before it ended is restarted at once, whatever its back-off was before."""


class Stack:
    """One stack with one data folder. `halt` stops it; `hurry` kills children that haven't ended yet."""

    def __init__(self, home: Home, port: int, log: Log, halt: Event, hurry: Event) -> None:
        self._home = home
        self._port = port
        self._log = log
        self._halt = halt
        self._hurry = hurry
        self._children: list[Child] = []
        """The children in the order in which they were started."""
        self._backoff: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def run(self) -> None:
        """Start everything, log the addresses, and keep it running until `halt` is set. Raises StartFailed if it can't start,
        Halted if `halt` is set during the start. In every case nothing is left running."""
        self._home.open()
        try:
            leftovers.end_all(self._home.children, self._log)
            self._start()
            self._say_ready()
            while not self._halt.wait(_CHECK_SECONDS):
                self._revive()
        finally:
            self._end()
            self._home.close()

    def _start(self) -> None:
        port = self._port or free_port()
        if not is_free(port):
            raise StartFailed(f"port {port} is taken: set AMAML_PORT to another one (0: any free port)")
        url = f"http://{HOST}:{port}"
        devices = gpus.assigned(os.environ)
        self._home.remove_temporary()
        self._home.temporary.mkdir(mode=0o700)
        environment = self._environment(url, port)
        python = [sys.executable, "-m"]

        def command(name: str, *argv: str, **own: str) -> Command:
            seconds = STOP_SECONDS.get(_kind(name), 5.0)
            settings = environment | own
            return Command(name, [*python, *argv], settings, folder=self._home.folder, stop_seconds=seconds)

        Child(command("migrate", "alembic", "-c", str(_migrations()), "upgrade", "head"), self._log).run(
            120, self._halt
        )
        Child(command("keys", "service.admin", "bootstrap"), self._log).run(60, self._halt)
        api = ["uvicorn", "service.main:app", "--host", HOST, "--port", str(port), "--http", "h11"]
        api += ["--no-access-log", "--timeout-graceful-shutdown", "2"]
        self._add(Child(command("api", *api), self._log))
        for name, own in _workers(devices).items():
            self._add(Child(command(name, "celery", "-A", "worker.main", "worker", **own), self._log))

        def ready() -> bool:
            self._revive()
            return _answers_ready(url)

        wait_until(ready, _READY_SECONDS, "the API and a worker to be ready", self._halt, _CHECK_SECONDS)
        write_private(self._home.url, url)

    def _environment(self, url: str, port: int) -> dict[str, str]:
        """The children's environment. Starts the stores whose address isn't set."""
        environment = dict(os.environ)
        if "AMAML_DATABASE_URL" not in environment:
            server, environment["AMAML_DATABASE_URL"] = postgres.start(
                self._home.postgres, self._home.password("postgres"), self._log, self._halt
            )
            self._running(server)
        if "AMAML_BROKER_URL" not in environment:
            server, environment["AMAML_BROKER_URL"] = valkey.start(
                self._home.valkey, self._home.password("valkey"), self._log, self._halt
            )
            self._running(server)
        environment |= {
            "AMAML_HOME": str(self._home.folder),
            "AMAML_PORT": str(port),
            "AMAML_URL": url,
            "TMPDIR": str(self._home.temporary),
            "PYTHONUNBUFFERED": "1",
        }
        environment.setdefault("AMAML_SHUTDOWN_SECONDS", "6")  # the worker's share of the 20 s that a stop may take
        return environment

    def _add(self, child: Child) -> None:
        child.start()
        self._running(child)

    def _running(self, child: Child) -> None:
        self._children.append(child)
        leftovers.note(self._home.children, self._ending_order())

    def _say_ready(self) -> None:
        url = self._home.url.read_text()
        self._log.line("launcher", f"ready at {url}; dashboard {url}/, API reference {url}/docs")
        self._log.line("launcher", f"admin key in {self._home.admin_key}; Ctrl-C stops everything, data stay")

    def _revive(self) -> None:
        """Restart each child that has ended by itself: at once the first time, then after increasing pauses."""
        now = time.monotonic()
        for child in self._children:
            if child.status() is None:
                continue
            if child.name not in self._due:
                steady = now - child.started_at > _STEADY_SECONDS
                pause = 0.0 if steady else self._backoff.get(child.name, 0.0)
                self._backoff[child.name] = min(max(2 * pause, _FIRST_BACKOFF), _LAST_BACKOFF)
                self._due[child.name] = now + pause
                self._log.line("launcher", f"{child.name} {describe(child.status())}; restarting it in {pause:g} s")
            if now >= self._due[child.name]:
                del self._due[child.name]
                child.start()
                leftovers.note(self._home.children, self._ending_order())

    def _ending_order(self) -> list[Child]:
        """The children in the order in which they are ended."""
        last = {"api": 0, "worker": 1, "valkey": 2, "postgres": 3}
        return sorted(self._children, key=lambda child: last[_kind(child.name)])

    def _end(self) -> None:
        for _, alike in groupby(self._ending_order(), key=lambda child: _kind(child.name)):
            together = list(alike)
            for child in together:
                self._log.line("launcher", f"stopping {child.name}")
                child.ask_to_stop()
            for child in together:
                child.stop(self._hurry)
        self._home.remove_temporary()
        self._home.url.unlink(missing_ok=True)
        self._home.children.unlink(missing_ok=True)


def _workers(devices: list[str]) -> dict[str, dict[str, str]]:
    """The workers' names and their own environment variables: one worker for the CPU, and one for each GPU. The CPU's worker
    alone computes adaptations."""
    if not devices:
        return {"worker": {"CUDA_VISIBLE_DEVICES": ""} if os.environ.get("AMAML_GPUS") else {}}
    of_gpus = {
        f"worker-gpu{number}": {"CUDA_VISIBLE_DEVICES": device, "AMAML_ADAPTERS": "0"}
        for number, device in enumerate(devices)
    }
    return {"worker": {"CUDA_VISIBLE_DEVICES": ""}, **of_gpus}


def _kind(name: str) -> str:
    """The kind of a child: `worker` for each of several workers, otherwise its name."""
    return name.partition("-")[0]


def _migrations() -> Path:
    package = find_spec("migrations")
    if package is None or not package.submodule_search_locations:
        raise StartFailed("the package migrations isn't installed: run make setup")
    return Path(package.submodule_search_locations[0]) / "alembic.ini"


def _answers_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False  # not up or not ready yet: the caller tries again
