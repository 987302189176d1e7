"""Why a trainer or an adapter ended without a last message: the class of the crash, and the sentence that is shown."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

from service.jobs.attempts import Crash
from worker.processes.protocol import EXIT_NOT_TRUSTED, EXIT_OUT_OF_MEMORY

NATIVE_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")


def classify(status: int, oom_kills_before: int, what: str = "trainer") -> tuple[Crash, str]:
    """The class and a sentence without its full stop.

    `status`: the exit status, negative for a signal. `oom_kills_before`: `oom_kills()` when it started.
    """
    if status == EXIT_OUT_OF_MEMORY:
        return "out_of_memory", f"The {what} ran out of memory"
    if status == EXIT_NOT_TRUSTED:
        return "lost_worker", "The worker didn't renew its lease in time, so its trainer ended itself"
    if status >= 0:
        return "native_crash", f"The {what} ended with exit status {status} before its job was done"
    name = _signal_name(-status)
    if -status == signal.SIGKILL and oom_kills() > oom_kills_before:
        return "out_of_memory", f"The {what} was killed since the machine's or the container's memory ran out"
    if -status in NATIVE_CRASHES:
        return "native_crash", f"The {what} crashed in native code ({name})"
    return "killed", f"The {what} was killed from outside ({name})"


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for lack of memory; 0 where it doesn't count them."""
    if not CGROUP_EVENTS.exists():
        return 0
    counts = dict(line.split() for line in CGROUP_EVENTS.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
