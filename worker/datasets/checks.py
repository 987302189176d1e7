"""Checks uploaded data sets, one at a time a worker, each in a process of its own (worker.datasets.validator).

A check is taken with a lease that is renewed as long as the process runs, so a worker that dies loses it to another. The verdict
is the report that the process prints: a whole one counts, however the process ends after it. A process that took too long or too
much memory makes the data set invalid at once. One that ended in any other way without a report, and a machine that can't keep
the file, are accidents, which say nothing of the file: the check is tried again a few times. What came from no report is never
kept: the same bytes, uploaded again, are checked anew (see service.datasets.checks).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Final

from pydantic import ValidationError

from amaml.dataset_report import DatasetReport
from service.core import blobs
from service.core.blobs import BlobNotFound
from service.core.database import transaction
from service.datasets import checks as dataset_checks
from service.datasets.checks import Check
from worker.processes.protocol import EXIT_OUT_OF_MEMORY
from worker.renewal import Abandoned, Renewal
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 5.0
"""Without a notification, which may be lost."""
SECONDS_AFTER_AN_ACCIDENT: Final = 0.5
"""Pause before this worker's next check: meanwhile another worker, whose machine may be in better order, can take it."""
BEAT_SECONDS: Final = 0.05
VALIDATOR: Final = (sys.executable, "-P", "-m", "worker.datasets.validator")
"""The command, to which the arguments of a check are added."""
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LC_ALL": "C.UTF-8",
    # A process that only reads needs no threads, whose stacks would count as memory.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def _environment() -> dict[str, str]:
    """Of a check's process: nothing secret, and modules from where the worker has its own."""
    return _ENVIRONMENT | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


class Accident(Exception):
    """The check ended without a verdict, for a reason that isn't the file's."""

    def __init__(self, how: str, remedy: str) -> None:
        super().__init__(how)
        self.how, self.remedy = how, remedy


class DatasetChecks:
    """`step` checks what waits. `folder`: where the files lie meanwhile. `validator`: the command that reads a file."""

    def __init__(
        self, settings: WorkerSettings, folder: Path, stopping: Event, validator: Sequence[str] = VALIDATOR
    ) -> None:
        self._settings, self._folder, self._stopping, self._validator = settings, folder, stopping, validator
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
        folder = self._folder / f"data set {check.id} {check.attempt}"
        try:
            report, detail = self._verdict(check, folder)
        except Abandoned:
            log.info("data set %s: its check is left to another", check.id)
            with transaction() as session:
                dataset_checks.give_back(session, check)
            return True
        except Accident as accident:
            self._broke_down(check, accident)
            return True
        finally:
            shutil.rmtree(folder, ignore_errors=not folder.exists())
        with transaction() as session:
            dataset_checks.finish(session, check, report, detail)
        log.info("data set %s: %s", check.id, detail or "ready")
        return True

    def _broke_down(self, check: Check, accident: Accident) -> None:
        with transaction() as session:
            again = dataset_checks.broke_down(session, check, accident.how, accident.remedy)
        what_now = "it is tried again" if again else "it isn't tried again"
        log.warning("data set %s: its check broke down %s; %s", check.id, accident.how, what_now)
        self._stopping.wait(SECONDS_AFTER_AN_ACCIDENT)

    def _verdict(self, check: Check, folder: Path) -> tuple[DatasetReport | None, str | None]:
        """The check's report, if there is one, and the sentence of a data set that is invalid. Raises Abandoned, Accident."""
        path = folder / "file"
        try:
            folder.mkdir()
            self._fetch(check, path)
            status, output = self._run(check, path, folder / "report")
        except OSError as error:
            how = f"since the worker can't keep its file or start a process ({error.strerror or error})"
            remedy = "make room on the workers' machines, then upload the same file again, and it is checked anew"
            raise Accident(how, remedy) from error
        report = _report(output)
        if report is not None:
            return report, _sentence(report)
        return None, self._without_report(status)

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
        """The validator's exit status (negative for a signal, None where it ran too long) and its output.

        Raises Abandoned, OSError.
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
                [*self._validator, *arguments],
                stdin=subprocess.DEVNULL, stdout=stream, env=_environment(), cwd=path.parent, start_new_session=True,
            )  # fmt: skip
        try:
            while process.poll() is None:
                if self._stopping.is_set():
                    raise Abandoned
                if time.monotonic() > give_up:
                    return None, output.read_bytes()
                renewal.if_due()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(BEAT_SECONDS)
        finally:
            process.kill()
            process.wait()
        return process.returncode, output.read_bytes()

    def _renewal(self, check: Check) -> Renewal:
        return Renewal(dataset_checks.QUEUE, check, self._lease)

    def _without_report(self, status: int | None) -> str:
        """The sentence for a check that exceeded its time or memory; raises Accident where it ended in another way."""
        memory, limit = self._settings.dataset_check_memory_bytes, self._settings.dataset_check_seconds
        if status is None or -status == signal.SIGXCPU:
            return f"Its check took longer than {limit:g} s: upload less at once, or a simpler file."
        if status == EXIT_OUT_OF_MEMORY:
            return f"Its check needed more than {memory >> 20} MiB of memory: upload less at once, or in smaller row groups."
        remedy = (
            "upload the same file again, and it is checked anew; if that breaks down too, the file may be damaged: save it "
            "anew, or as CSV"
        )
        raise Accident(f"by {_ending(status)}", remedy)


def _report(output: bytes) -> DatasetReport | None:
    """The report; None where it isn't whole, since output that was cut short is no JSON."""
    try:
        return DatasetReport.model_validate_json(_storable(output))
    except ValidationError:
        return None


def _ending(status: int) -> str:
    """How a process ended that printed no whole report, to follow the word 'by'."""
    if status == 0:
        return "output that is no report"
    if status > 0:
        return f"exit status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def _sentence(report: DatasetReport) -> str | None:
    """What is wrong with the file, in a sentence; None for a good one."""
    if not report.errors:
        return None
    first = report.errors[0]
    where = f"Line {first.line}: " if first.line else ""
    more = f" ({len(report.errors) - 1} more in the report)" if len(report.errors) > 1 else ""
    return f"{where}{first.detail}{more}."


def _storable(output: bytes) -> bytes:
    """The output without characters that Postgres or UTF-8 can't hold: names in a file may be any text."""
    return output.replace(b"\\u0000", b"\\ufffd").decode("utf-8", "replace").encode()
