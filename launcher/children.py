"""A child process. It has its own session, so that a terminal's Ctrl-C only reaches the launcher; it dies with the launcher, and
its output goes to the log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO

from launcher.log import Log

_IDENTITY = Path(__file__).with_name("identity.py")
_POLL_SECONDS = 0.05


class StartFailed(Exception):
    """The stack can't start or go on; the message says why and what to do."""


class Halted(Exception):
    """The user asked the launcher to stop while it was waiting."""


@dataclass(frozen=True)
class Command:
    """A program to run, and how it is ended."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    folder: Path | None = None
    identity: str = "same"
    """A key of `launcher.identity.IDENTITIES`."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 5.0
    """The time that it has to end by itself after `stop_signal` before it is killed."""
    death_signal: signal.Signals = signal.SIGKILL
    """The signal that the kernel sends it when the launcher dies (Linux)."""


class Child:
    """A process that runs a command. Start it from the main thread: the death signal is sent when the starting thread ends."""

    def __init__(self, command: Command, log: Log) -> None:
        self.command = command
        self.started_at = 0.0
        self._asked_at: float | None = None
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        command = self.command
        prefix = [str(os.getpid()), str(int(command.death_signal)), command.identity]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_IDENTITY), *prefix, *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(command.environment),
            cwd=command.folder,
            start_new_session=True,
        )
        self.started_at, self._asked_at = time.monotonic(), None
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._forward, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def run(self, seconds: float, halt: Event) -> None:
        """Start, and wait until it has ended with status 0. Raises StartFailed for any other end, Halted when `halt` is set
        first."""
        self.start()
        try:
            wait_until(lambda: self.status() is not None, seconds, f"{self.name} to end", halt)
        finally:
            self.stop()
        if self.status() != 0:
            raise StartFailed(f"{self.name} {describe(self.status())}; its lines above say why")

    def ask_to_stop(self) -> None:
        """Ask it to end, unless that was done already, without waiting."""
        if self._process is not None and self._process.poll() is None and self._asked_at is None:
            self._process.send_signal(self.command.stop_signal)
            self._asked_at = time.monotonic()

    def stop(self, hurry: Event | None = None) -> None:
        """Ask it to end, kill its process group if it doesn't end in time (or at once when `hurry` is set), and reap it."""
        if self._process is None:
            return
        self.ask_to_stop()
        if self._asked_at is not None:
            deadline = self._asked_at + self.command.stop_seconds
            while self._process.poll() is None and time.monotonic() < deadline and not (hurry and hurry.is_set()):
                time.sleep(_POLL_SECONDS)
        if self._process.poll() is None:
            self._log.line("launcher", f"{self.name} didn't end in time: killing it")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._reader:
            self._reader.join(timeout=1)  # not longer, since a grandchild may keep the pipe open

    def _forward(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._log.line(self.name, line.decode(errors="replace").rstrip())


def describe(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "still runs"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def wait_until(
    condition: Callable[[], bool], seconds: float, what: str, halt: Event, every: float = _POLL_SECONDS
) -> None:
    """Test the condition every `every` seconds until it holds. Raises StartFailed after `seconds`, Halted when `halt` is set
    first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if halt.wait(every):
            raise Halted
        if time.monotonic() > deadline:
            raise StartFailed(f"waited {seconds:.0f} s in vain for {what}; the lines above may say why")
