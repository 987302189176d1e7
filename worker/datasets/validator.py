"""The check of one data set: a process of its own, which reads an untrusted file and reports what is in it.

    python -m worker.datasets.validator FORMAT FAMILIES PATH MEMORY_BYTES CPU_SECONDS

It bounds its own memory and time before it opens the file, has neither the database's address nor any other secret in its
environment, and prints a DatasetReport as JSON. The report is one JSON object and printed last, so whoever can parse what was
printed has all of it. What becomes of a check whose process printed no report: see worker.datasets.checks.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

from amaml.dataset_format import readers
from amaml.dataset_report import DatasetReport
from worker.processes.protocol import EXIT_OUT_OF_MEMORY

MAX_OUTPUT_BYTES: Final = 4 << 20


def main() -> NoReturn:
    format_, families, path, memory, seconds = sys.argv[1:]
    _bound(int(memory), int(seconds))
    _die_with_parent()
    try:
        report = inspect(Path(path), format_, families.split(","))
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)
    sys.stdout.write(report.model_dump_json())
    sys.stdout.flush()
    # Without a teardown: threads of native libraries that still run crash the process at its end now and then.
    os._exit(0)


def inspect(path: Path, format_: str, families: list[str]) -> DatasetReport:
    """What the families that accepted the file say of it. The first of them decides whether it is sound; others add what it
    doesn't say, such as a table's columns to ratings in CSV."""
    known = readers()
    try:
        first, *others = (known[kind] for kind in families)
    except KeyError as missing:
        sys.exit(
            f"the package that offers family {missing} isn't installed on this worker's machine: install it, and start anew"
        )
    report = first.validate(path, format_)
    for other in others if not report.errors else ():
        found = other.validate(path, format_)
        told = {name: value for name, value in found if value and not getattr(report, name)}
        report = report if found.errors else report.model_copy(update=told)
    return report


def _bound(memory: int, seconds: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT_BYTES),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(what)[1]
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # Out of CPU time, Linux sends SIGXCPU at the lower bound, which tells why; at the upper one SIGKILL, as anybody may.
        above = 1 if what == resource.RLIMIT_CPU and bound != hard else 0
        resource.setrlimit(what, (bound, bound + above))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
