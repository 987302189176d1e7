"""Checks uploaded data sets, one at a time a worker, each in a process of its own (worker.validator).

A check is taken with a lease that is renewed as long as the process runs, so a worker that dies loses it to another. How
the process ends is the verdict, whatever it is: a file that crashes its reader is invalid and isn't read again.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Final

from pydantic import ValidationError

from amaml.dataset_report import DatasetReport
from service.store import blobs, dataset_checks
from service.store.blobs import BlobNotFound
from service.store.database import transaction
from service.store.dataset_checks import Check
from worker.protocol import EXIT_OUT_OF_MEMORY
from worker.renewal import Abandoned, Renewal
from worker.settings import Settings

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 5.0
"""Without being told of any: a worker that takes over from another may not be."""
BEAT_SECONDS: Final = 0.05
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LC_ALL": "C.UTF-8",
    # A process that only reads needs no threads, whose stacks would count as memory.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


class DatasetChecks:
    """`step` checks what waits. `folder`: where the files lie meanwhile."""

    def __init__(self, settings: Settings, folder: Path, stopping: Event) -> None:
        self._settings, self._folder, self._stopping = settings, folder, stopping
        self._lease = timedelta(seconds=settings.lease_seconds)

    def step(self) -> None:
        while not self._stopping.is_set() and self.check_next():
            pass

    def check_next(self) -> bool:
        """Checks the data set that has waited longest; False if none waits."""
        with transaction() as session:
            check = dataset_checks.take_next(session, self._lease)
        if check is None:
            return False
        folder = self._folder / f"data set {check.dataset_id} {check.attempt}"
        folder.mkdir()
        try:
            report, detail = self._verdict(check, folder)
        except Abandoned:
            log.info("data set %s: its check is left to another", check.dataset_id)
            with transaction() as session:
                dataset_checks.give_back(session, check)
            return True
        finally:
            shutil.rmtree(folder)
        with transaction() as session:
            dataset_checks.finish(session, check, report, detail)
        log.info("data set %s: %s", check.dataset_id, detail or "ready")
        return True

    def _verdict(self, check: Check, folder: Path) -> tuple[DatasetReport | None, str | None]:
        """What the check found, if it came to its end, and the sentence of a file that is invalid. Raises Abandoned."""
        path = folder / "file"
        self._fetch(check, path)
        status, output = self._run(check, path, folder / "report")
        if status != 0:
            return None, self._crash(status)
        try:
            report = DatasetReport.model_validate_json(_storable(output))
        except ValidationError:
            log.exception("data set %s: the check said what is no report", check.dataset_id)
            return None, "Its check said nothing that could be understood: save the file anew and upload it again."
        return report, _sentence(report)

    def _fetch(self, check: Check, path: Path) -> None:
        renewal = self._renewal(check)
        try:
            with path.open("wb") as file:
                for piece in blobs.read(check.blob_id):
                    file.write(piece)
                    renewal.if_due()
        except BlobNotFound:
            raise Abandoned from None

    def _run(self, check: Check, path: Path, output: Path) -> tuple[int | None, bytes]:
        """Exit status of the validator (negative for a signal, None for one that ran too long) and what it printed.

        Raises Abandoned.
        """
        limit, memory = self._settings.dataset_check_seconds, self._settings.dataset_check_memory_bytes
        arguments = [
            check.format,
            ",".join(check.families),
            str(path),
            str(memory + check.bytes),
            str(round(limit) + 1),
        ]
        renewal = self._renewal(check)
        give_up = time.monotonic() + limit
        with output.open("wb") as stream:
            # Started in a thread that lives as long as the worker: Linux kills the child when that thread ends.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.validator", *arguments],
                stdin=subprocess.DEVNULL, stdout=stream, env=_ENVIRONMENT, cwd=path.parent, start_new_session=True,
            )  # fmt: skip
        try:
            while process.poll() is None:
                if self._stopping.is_set():
                    raise Abandoned
                if time.monotonic() > give_up:
                    return None, b""
                renewal.if_due()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(BEAT_SECONDS)
        finally:
            process.kill()
            process.wait()
        return process.returncode, output.read_bytes()

    def _renewal(self, check: Check) -> Renewal:
        return Renewal(lambda session: dataset_checks.renew(session, check, self._lease), self._lease.total_seconds())

    def _crash(self, status: int | None) -> str:
        """The sentence of a check that came to no end."""
        memory, limit = self._settings.dataset_check_memory_bytes, self._settings.dataset_check_seconds
        if status is None or -status == signal.SIGXCPU:
            return f"Its check took longer than {limit:g} s: upload less at once, or a simpler file."
        if status == EXIT_OUT_OF_MEMORY:
            return f"Its check needed more than {memory >> 20} MiB of memory: upload less at once, or in smaller row groups."
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return (
            f"Its reader broke down over it ({how}): the file is damaged, or too much for it. Save it anew, or as CSV."
        )


def _sentence(report: DatasetReport) -> str | None:
    """What is wrong with the file, in a sentence; None for a good one."""
    if not report.errors:
        return None
    first = report.errors[0]
    where = f"Line {first.line}: " if first.line else ""
    more = f" ({len(report.errors) - 1} more in the report)" if len(report.errors) > 1 else ""
    return f"{where}{first.detail}{more}."


def _storable(output: bytes) -> bytes:
    """Without what neither Postgres nor UTF-8 can hold: names in a file are anybody's text."""
    return output.replace(b"\\u0000", b"\\ufffd").decode("utf-8", "replace").encode()
