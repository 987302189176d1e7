"""Identities, the death signal, sessions, stopping."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from launcher import leftovers
from launcher.children import Child, Command, Halted, StartFailed, describe
from launcher.identity import IDENTITIES
from launcher.log import Log
from tests.support.waiting import CEILING_SECONDS, wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def shell(script: str, **more: object) -> Command:
    return Command("child", ["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]


def run(command: Command) -> str:
    """The command's output, read from the log."""
    stream = io.StringIO()
    Child(command, Log(stream)).run(20, Event())
    return stream.getvalue()


@as_root
@on_linux
@pytest.mark.parametrize("identity", [name for name in IDENTITIES if name != "same"])
def test_no_identity_but_our_own_is_root(identity: str) -> None:
    assert run(shell("id -u", identity=identity)).strip() == "child    | 65534"


@as_root
@on_linux
def test_an_unprivileged_child_has_no_capability_but_the_one_it_needs(tmp_path: Path) -> None:
    script = "grep CapEff /proc/self/status"
    assert run(shell(script, identity="nobody")).endswith("0000000000000000\n")
    assert run(shell(script, identity="nobody+search")).endswith("0000000000000004\n")
    assert run(shell(script, identity="nobody+override")).endswith("0000000000000002\n")


@as_root
@on_linux
def test_only_the_searching_identities_pass_a_closed_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "inside").mkdir(mode=0o755)
    with pytest.raises(StartFailed):
        run(shell(f"ls {tmp_path}/inside", identity="nobody"))
    run(shell(f"ls {tmp_path}/inside", identity="nobody+search"))
    probe = f"import os; assert os.access('{tmp_path}/inside', os.X_OK)"
    run(Command("child", ["/usr/bin/env", sys.executable, "-c", probe], identity="nobody+search"))
    with pytest.raises(StartFailed):
        run(shell(f"touch {tmp_path}/inside/file", identity="nobody+search"))


@on_linux
@pytest.mark.parametrize("identity", ["same", pytest.param("nobody+search", marks=as_root)])
def test_a_child_dies_with_its_launcher(tmp_path: Path, identity: str) -> None:
    """The launcher is killed with SIGKILL, so that its code can't end the child."""
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from launcher.children import Child, Command; from launcher.log import Log\n"
            f"child = Child(Command('c', ['/bin/sleep', '600'], identity={identity!r}), Log(sys.stderr))\n"
            "child.start(); print(child.pid, flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        assert launcher.stdout
        pid = int(launcher.stdout.readline())
        wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
        launcher.kill()
    wait_until(lambda: leftovers.birth(pid) is None)


def test_a_child_has_a_session_of_its_own() -> None:
    child = Child(shell("sleep 60"), Log(io.StringIO()))
    child.start()
    try:
        assert os.getsid(child.pid) == child.pid
    finally:
        child.stop()
    assert child.status() == -signal.SIGTERM


def test_a_child_that_will_not_end_is_killed_with_its_group() -> None:
    stream = io.StringIO()
    child = Child(shell("trap '' TERM; echo up; while :; do sleep 0.05; done", stop_seconds=0.3), Log(stream))
    child.start()
    wait_until(lambda: "up" in stream.getvalue())
    began = time.monotonic()
    child.stop()
    assert child.status() == -signal.SIGKILL
    assert time.monotonic() - began >= 0.3


def test_hurry_kills_before_the_time_to_end_is_over() -> None:
    stream = io.StringIO()
    child = Child(shell("trap '' TERM; echo up; while :; do sleep 0.05; done", stop_seconds=100_000), Log(stream))
    child.start()
    wait_until(lambda: "up" in stream.getvalue())
    hurry = Event()
    hurry.set()
    child.stop(hurry)  # returns at once, not after a day
    assert child.status() == -signal.SIGKILL


def test_a_failed_command_is_reported_with_its_status() -> None:
    with pytest.raises(StartFailed, match="child ended with exit status 3"):
        run(shell("exit 3"))
    assert describe(-9) == "was ended by SIGKILL"


def test_waiting_ends_when_halted_and_leaves_no_process() -> None:
    halt = Event()
    halt.set()
    child = Child(shell("sleep 60"), Log(io.StringIO()))
    with pytest.raises(Halted):
        child.run(CEILING_SECONDS, halt)
    assert child.status() is not None


def test_a_log_without_a_reader_does_not_stop_the_child() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        child = Child(shell("for i in 1 2 3; do echo line; done"), Log(stream))
        child.run(CEILING_SECONDS, Event())
        assert child.status() == 0
        with pytest.raises(BrokenPipeError):
            stream.close()
