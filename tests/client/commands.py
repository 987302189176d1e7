"""The `amaml` command as processes: run to their ends, or beside the test."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.databases import ROOT
from tests.support.waiting import CEILING_SECONDS, wait_until

AMAML = str(Path(sys.executable).with_name("amaml"))
"""The installed script."""

Amaml = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command with these arguments and changes of the environment."""


class Prepared:
    """Runs commands in forks of a process that has the imports done: milliseconds each, and no quarter of a second."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.prepared"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with TemporaryDirectory() as answers:
            stdout, stderr = Path(answers, "stdout"), Path(answers, "stderr")
            order = {
                "arguments": arguments, "environment": environment, "folder": str(folder),
                "stdout": str(stdout), "stderr": str(stderr), "seconds": int(CEILING_SECONDS),
            }  # fmt: skip
            print(json.dumps(order), file=self._process.stdin, flush=True)
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, stdout.read_text(), stderr.read_text())

    def close(self) -> None:
        self._process.communicate(timeout=CEILING_SECONDS)


class Started:
    """The installed script beside the test, in a pipe or on a terminal of its own; what it shows is gathered as it comes."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], *, on_a_terminal: bool) -> None:
        self._near, far = pty.openpty() if on_a_terminal else os.pipe()
        self.process = subprocess.Popen(
            [AMAML, *arguments],
            env={**environment, "COLUMNS": "160"},
            stdin=far if on_a_terminal else subprocess.DEVNULL,
            stdout=far,
            stderr=far,
            start_new_session=True,
        )
        os.close(far)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(self._near, 65536):
                self.shown += piece.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        def is_shown() -> bool:
            has_ended = not self._reader.is_alive()
            assert text in self.shown or not has_ended, f"it ended without a word of {text!r}: {self.shown}"
            return text in self.shown

        wait_until(is_shown)

    def end(self) -> int:
        """Its exit status; all that it showed is in `shown`."""
        code = self.process.wait(CEILING_SECONDS)
        self._reader.join(CEILING_SECONDS)
        return code

    def close(self) -> None:
        self.process.kill()
        self.end()
        os.close(self._near)


Start = Callable[..., Started]
"""Starts the installed script with these arguments, and changes of the environment."""
