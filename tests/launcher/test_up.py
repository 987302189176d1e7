"""`python -m launcher up` as a whole: real stores, API and worker; signals, hard kills, restarts, several stacks."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from launcher import postgres, valkey
from launcher.ports import is_free
from launcher.stack import STOP_SECONDS
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import REAL_TRAINERS, STUB

ROOT = Path(__file__).parents[2]
UP = [sys.executable, "-m", "launcher", "up"]
pytestmark = pytest.mark.processes

QUICK = (
    {}
    if REAL_TRAINERS in os.environ
    else {"AMAML_TRAINER_MODULE": STUB, "PYTHONPATH": str(ROOT), "AMAML_ADAPTERS": "0"}
)
"""Settings of a stack whose worker is ready soon, for tests of the launcher itself."""


class Stack:
    """A running launcher, its output, and the processes that it started."""

    def __init__(self, home: Path, port: int = 0, command: list[str] = UP, extra: Mapping[str, str] = QUICK) -> None:
        self.home = home
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        settings = {name: value for name, value in os.environ.items() if not name.startswith("AMAML_")}
        self.process = subprocess.Popen(
            command,
            env={**settings, "AMAML_HOME": str(home), "AMAML_PORT": str(port), **extra},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip())
                self._arrived.put(line.rstrip())
        self._arrived.put(None)

    def wait_for(self, pattern: str, seconds: float = CEILING_SECONDS) -> re.Match[str]:
        """Waits for the next line that matches the pattern, and returns it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line like {pattern!r} within {seconds} s:\n" + "\n".join(self.lines))
            if line is None:
                pytest.fail(f"the launcher ended without a line like {pattern!r}:\n" + "\n".join(self.lines))
            if found := re.search(pattern, line):
                return found

    def ready(self) -> Stack:
        self.url = self.wait_for(r"ready at (http://\S+);")[1]
        return self

    def pids(self) -> dict[str, int]:
        return {entry["name"]: entry["pid"] for entry in json.loads((self.home / "children.json").read_text())}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(CEILING_SECONDS)
        self._reader.join(5)
        return status

    def get(self, path: str) -> tuple[int, str]:
        answer = httpx2.get(self.url + path, headers=self._authorization(), timeout=30)
        return answer.status_code, answer.text

    def submit(self, spec: dict[str, Any]) -> str:
        """Submits a job, and returns its path."""
        answer = httpx2.post(self.url + "/v1/jobs", json=spec, headers=self._authorization(), timeout=30)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": "Bearer " + (self.home / "admin.key").read_text().strip()}

    def becomes_ready_again(self) -> None:
        def is_ready() -> bool:
            try:
                return self.get("/readyz")[0] == 200
            except httpx2.TransportError:
                return False  # not up yet: tried again

        wait_until(is_ready)


@contextmanager
def stack(home: Path, port: int = 0, command: list[str] = UP, extra: Mapping[str, str] = QUICK) -> Iterator[Stack]:
    running = Stack(home, port, command, extra)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            try:
                running.process.wait(CEILING_SECONDS)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
                raise
        running._reader.join(5)


def processes_of(home: Path) -> list[str]:
    """Every process that has this home in its environment or in its command line (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # the process has ended
        if int(folder.name) != os.getpid() and (str(home).encode() in command or f"={home}\0".encode() in environment):
            found.append(command.replace(b"\0", b" ").decode())
    return found


def all_gone(home: Path) -> None:
    if sys.platform == "linux":
        wait_until(lambda: not processes_of(home))


def test_what_children_may_take_to_end_is_less_than_the_twenty_seconds_promised() -> None:
    assert sum(STOP_SECONDS.values()) + valkey.STOP_SECONDS + postgres.STOP_SECONDS < 20


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the make target runs .venv's Python")
def test_a_life_from_make_up_over_ctrl_c_and_a_hard_kill_to_a_third_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with stack(home, command=["make", "-o", ".venv/.installed", "up"], extra={}) as first:
        first.ready()
        assert first.get("/readyz")[0] == 200
        assert (home / "url").read_text() == first.url
        key = (home / "admin.key").read_text()
        assert (home / "admin.key").stat().st_mode & 0o777 == 0o600
        pids = first.pids()
        assert list(pids) == ["api", "worker", "valkey", "postgres"]
        for pid in pids.values():  # a terminal's Ctrl-C reaches none of them
            assert os.getsid(pid) == pid
        port = int(first.url.rpartition(":")[2])
        with socket.socket() as neighbour, pytest.raises(ConnectionRefusedError):
            neighbour.connect(("127.0.0.2", port))
        path = first.submit({"family": {"kind": "sinusoid"}, "meta": {"iterations": 100_000}})
        # A terminal sends it to the whole foreground process group, make included; make then sends it once more.
        os.killpg(first.process.pid, signal.SIGINT)
        first.wait_for("stopping api")
        os.killpg(first.process.pid, signal.SIGINT)
        first.process.wait(CEILING_SECONDS)
        first.wait_for("launcher | stopped")
    stopped = [line.split()[-1] for line in first.lines if line.startswith("launcher | stopping")]
    assert stopped == ["api", "worker", "valkey", "postgres"]
    assert not any("killing it" in line for line in first.lines)
    all_gone(home)
    assert is_free(port)
    assert list(tmp_path.iterdir()) == [home]
    assert not {"tmp", "url", "children.json"} & {path.name for path in home.iterdir()}

    with stack(home, port) as second:
        second.ready()
        assert (home / "admin.key").read_text() == key
        assert second.get(path)[0] == 200
        second.process.kill()
        second.process.wait()
    with stack(home, port) as third:  # at once, on the same port
        third.ready()
        assert third.get(path)[0] == 200
        assert third.stop() == 0
    all_gone(home)


def test_two_stacks_side_by_side(tmp_path: Path) -> None:
    with stack(tmp_path / "one") as one, stack(tmp_path / "two") as two:
        one.ready()
        two.ready()
        assert one.url != two.url
        assert one.get("/v1/jobs")[0] == two.get("/v1/jobs")[0] == 200

        with stack(tmp_path / "one") as refused:
            refused.wait_for("another launcher uses")
            assert refused.process.wait(CEILING_SECONDS) == 1
        port = int(one.url.rpartition(":")[2])
        with stack(tmp_path / "three", port) as refused:
            refused.wait_for(f"port {port} is taken: set AMAML_PORT to another one")
            assert refused.process.wait(CEILING_SECONDS) == 1

        two.process.kill()
        two.process.wait()
        all_gone(two.home)

        before = one.pids()
        for name in ["api", "worker", "valkey", "postgres"]:
            os.kill(before[name], signal.SIGKILL)
            one.wait_for(rf"launcher \| {name} was ended by SIGKILL; restarting it")
        one.becomes_ready_again()
        after = one.pids()
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows another process' environment")
def test_a_worker_for_each_gpu_and_one_for_the_cpu(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with stack(home, extra={**QUICK, "AMAML_GPUS": "0,GPU-8f3c2a1e"}) as running:
        running.ready()
        workers = {name: pid for name, pid in running.pids().items() if name.startswith("worker")}
        seen = {name: settings_of(pid)["CUDA_VISIBLE_DEVICES"] for name, pid in workers.items()}
        assert seen == {"worker": "", "worker-gpu0": "0", "worker-gpu1": "GPU-8f3c2a1e"}
        wait_until(lambda: len(json.loads(running.get("/v1/workers")[1])["data"]) == len(workers))
        os.kill(workers["worker-gpu1"], signal.SIGKILL)
        running.wait_for(r"launcher \| worker-gpu1 was ended by SIGKILL; restarting it")
        assert running.stop() == 0
    all_gone(home)
    stopped = [line.split()[-1] for line in running.lines if line.startswith("launcher | stopping")]
    assert stopped == ["api", "worker", "worker-gpu0", "worker-gpu1", "valkey", "postgres"]
    doubts = [line for line in running.lines if "PyTorch finds no GPU there" in line]
    assert any("worker-gpu1" in line and "CUDA_VISIBLE_DEVICES is GPU-8f3c2a1e," in line for line in doubts)
    assert not any("killing it" in line for line in running.lines)


def settings_of(pid: int) -> dict[str, str]:
    """The environment with which the process was started."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@pytest.mark.parametrize("after", [r"initdb|postgres \|", r"valkey \||launcher \|", r"migrate \||api"])
def test_a_stop_during_the_start_ends_everything(tmp_path: Path, after: str) -> None:
    home = tmp_path / "home"
    with stack(home) as running:
        running.wait_for(after)
        assert running.stop() == 0
    all_gone(home)
    assert running.lines[-1] == "launcher | stopped"


def test_an_invalid_port(tmp_path: Path) -> None:
    with stack(tmp_path / "home", extra={"AMAML_PORT": "eighty"}) as running:
        running.wait_for("AMAML_PORT=eighty isn't a port")
        assert running.process.wait(CEILING_SECONDS) == 1


def test_an_unusable_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with stack(tmp_path / "file") as running:
        running.wait_for("can't be used: .*; name another folder")
        assert running.process.wait(CEILING_SECONDS) == 1


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="root becomes another user here")
def test_as_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It keeps only root's capability to read in closed folders, since the interpreter may be in one."""
    home = tmp_path_factory.mktemp("ordinary") / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    child = str(ROOT / "launcher" / "identity.py")
    command = [sys.executable, "-I", "-S", child, str(os.getpid()), "15", "nobody+search", *UP]
    with stack(home, command=command) as running:
        running.ready()
        for pid in running.pids().values():
            assert Path(f"/proc/{pid}").stat().st_uid == 65534
        assert running.get("/v1/jobs")[0] == 200
    assert all(path.stat().st_uid == 65534 for path in home.rglob("*"))


def test_given_stores_are_used_and_none_started(tmp_path: Path, empty_database_url: str, broker_url: str) -> None:
    given = {**QUICK, "AMAML_DATABASE_URL": empty_database_url, "AMAML_BROKER_URL": broker_url}
    with stack(tmp_path / "home", extra=given) as running:
        running.wait_for("api .* Uvicorn running")
        assert list(running.pids()) == ["api", "worker"]
