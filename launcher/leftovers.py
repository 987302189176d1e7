"""Children that outlived their launcher: a file lists them while it runs, and the next start ends those that are left.

On Linux the kernel ends the children of a launcher that dies; this is for macOS, which can't do that, and for children that
survived. Process numbers are reused, so the file also holds the time of each process' start, and only a process that has both
is ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from launcher.children import Child
from launcher.log import Log

_END_SECONDS = 8.0
_KILL_SECONDS = 5.0


def note(file: Path, children: Iterable[Child]) -> None:
    """Write the children that run now to the file, whole or not at all."""
    entries = [
        {"name": child.name, "pid": child.pid, "birth": birth(child.pid), "signal": int(child.command.stop_signal)}
        for child in children
        if child.status() is None
    ]
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(entries))
    fresh.replace(file)


def end_all(file: Path, log: Log) -> None:
    """End the processes in the file of a former launcher that still run, in its order; then remove the file."""
    if not file.exists():
        return
    for entry in json.loads(file.read_text()):
        if birth(entry["pid"]) == entry["birth"] is not None:
            log.line("launcher", f"ending {entry['name']} (process {entry['pid']}) of a launcher that was killed")
            _end(entry["pid"], entry["birth"], signal.Signals(entry["signal"]))
    file.unlink()


def _end(pid: int, born: str, stop_signal: signal.Signals) -> None:
    for number, seconds in [(stop_signal, _END_SECONDS), (signal.SIGKILL, _KILL_SECONDS)]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while birth(pid) == born and time.monotonic() < deadline:
            time.sleep(0.05)
        if birth(pid) != born:
            return


def has_ended(pid: int) -> bool:
    """Whether no program runs under this process number; a zombie, which nobody has reaped, has ended."""
    return birth(pid) is None


def birth(pid: int) -> str | None:
    """The start time of the process with this number, which distinguishes it from a later one; None if it has ended."""
    if sys.platform != "linux":
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, began = shown.stdout.strip().partition(" ")
        return None if not state or state.startswith("Z") else began.strip()
    try:
        # The line is `pid (name) state …`, where the name may contain blanks and brackets; so split after the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, ticks = fields[0], fields[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if state in "ZX" else f"{boot}:{ticks}"
