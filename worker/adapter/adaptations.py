"""Does adaptations, one at a time, in an adapter that is kept warm: a process that has imported torch (worker.adapter).

An adaptation is taken with a lease that is renewed while it goes on, so a worker that dies loses
it to another; an adapter that dies amid one, or that its machine fails, is replaced, and the adaptation tried again a few times.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any, Final

from service.adaptations import store as adaptations
from service.adaptations.store import MAX_TRIES, Taken
from service.core import blobs
from service.core.blobs import BlobNotFound, Written
from service.core.database import transaction
from worker.processes.crashes import classify, oom_kills
from worker.processes.parent import SECONDS_BETWEEN_WORK, SECONDS_TO_GET_READY, AdapterProcess, Gone
from worker.processes.protocol import Accident, Adapt, Adapted, NotAdapted
from worker.renewal import Abandoned, Renewal
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 2.0
BEAT_SECONDS: Final = 0.25
FILES_KEPT: Final = 8
MOST_REQUESTS: Final = 10_000
"""Requests that one adapter serves before it is replaced, which bounds the memory that they may leave behind."""


@dataclass(frozen=True)
class Crashed:
    """An accident ended the adaptation. What happened and what to do, as sentences without their full stops."""

    how: str
    remedy: str


End = Adapted | NotAdapted | Crashed


class Adaptations:
    """`step` does what waits. `name`: of the adapter, unique in the worker. `folder`: where files lie meanwhile. `may_start`:
    whether the adapter may take the cores for a while, to import torch."""

    def __init__(
        self, name: str, settings: WorkerSettings, folder: Path, stopping: Event, may_start: Callable[[], bool]
    ) -> None:
        self.name = name
        self._settings, self._parent, self._stopping, self._may_start = settings, folder, stopping, may_start
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._adapter: AdapterProcess | None = None
        self._files: OrderedDict[str, Path] = OrderedDict()

    def step(self) -> None:
        if self._may_start():
            while not self._stopping.is_set() and self._get_ready() and self._do_next():
                pass

    def close(self) -> None:
        """Kills the adapter. Called when no step runs any more."""
        if self._adapter is not None:
            self._adapter.kill()

    def _get_ready(self) -> bool:
        """Makes sure that an adapter is ready for work. False where none gets ready, or the worker is to end."""
        if self._adapter is not None:
            if self._adapter.requests < MOST_REQUESTS and self._is_ready(self._adapter, SECONDS_BETWEEN_WORK):
                return True
            self._adapter.kill()
        # Started in this thread, which ends after it: Linux kills the child when the thread that started it ends.
        self._adapter = AdapterProcess(self._settings.adaptation_memory_bytes)
        if self._is_ready(self._adapter, SECONDS_TO_GET_READY):
            log.info("adapter %d is ready", self._adapter.pid)
            return True
        self._adapter.kill()
        if not self._stopping.is_set():
            log.error("an adapter didn't get ready; its own lines above say why")
        return False

    def _is_ready(self, adapter: AdapterProcess, seconds: float) -> bool:
        """Waits until the adapter is ready; False if it ends, takes longer than `seconds`, or the worker is to end."""
        give_up = time.monotonic() + seconds
        while adapter.is_alive and time.monotonic() < give_up and not self._stopping.is_set():
            if adapter.wait_until_ready(BEAT_SECONDS):
                return True
        return False

    def _do_next(self) -> bool:
        """Does the one that has waited longest; False if none waits."""
        with transaction() as session:
            taken = adaptations.take_next(session, self._lease)
        if taken is None:
            return False
        folder = self._parent / f"adaptation {taken.id} {taken.attempt}"
        try:
            folder.mkdir()
            self._finish(taken, self._do(taken, folder))
        except Abandoned:
            log.info("adaptation %s: left to another", taken.id)
            with transaction() as session:
                adaptations.give_back(session, taken, counted=False)
        except OSError as error:
            log.warning("adaptation %s: this worker can't keep its files: %s", taken.id, error)
            self._stopping.wait(SECONDS_BETWEEN_LOOKS)  # another worker may have room on its disk
            sentence = f"The workers can't keep its files ({error.strerror}): make room on their disks, then ask again."
            with transaction() as session:
                if taken.tries < MAX_TRIES:
                    adaptations.give_back(session, taken, counted=True)
                else:
                    adaptations.fail(session, taken, "crashed", sentence)
        finally:
            shutil.rmtree(folder, ignore_errors=not folder.exists())
        return True

    def _do(self, taken: Taken, folder: Path) -> End:
        """Hands the adaptation to the adapter and waits for its answer; raises Abandoned."""
        assert self._adapter is not None, "it was ready"
        renewal = Renewal(adaptations.QUEUE, taken, self._lease)
        request = folder / "request.json"
        request.write_text(json.dumps(taken.request))
        initialization = self._initialization(taken, renewal)
        oom_kills_before = oom_kills()
        log.info("adaptation %s: attempt %d begins in adapter %d", taken.id, taken.attempt, self._adapter.pid)
        self._adapter.send(
            Adapt(
                adaptation_id=str(taken.id),
                request=str(request),
                initialization=str(initialization),
                folder=str(folder),
                threads=self._settings.threads_per_slot,
            )
        )
        try:
            return self._answer(renewal, oom_kills_before)
        except BaseException:
            self._adapter.kill()  # a late answer must not be taken for that of the next adaptation
            raise

    def _answer(self, renewal: Renewal, oom_kills_before: int) -> End:
        assert self._adapter is not None, "it was given an adaptation"
        limit = self._settings.adaptation_seconds
        give_up = time.monotonic() + limit
        while not self._stopping.is_set():
            said = self._adapter.receive(min(BEAT_SECONDS, max(0.0, give_up - time.monotonic())))
            if isinstance(said, Adapted | NotAdapted):
                return said
            if isinstance(said, Gone):
                how = classify(self._adapter.wait(), oom_kills_before, "adapter")[1]
                return Crashed(how, "send fewer rows, and look into the workers' logs and memory")
            if isinstance(said, Accident):
                self._adapter.kill()  # the cause may be the adapter's own state
                return Crashed(said.detail, "make room on the workers' machines, then ask again")
            if time.monotonic() >= give_up:
                self._adapter.kill()
                return NotAdapted(
                    reason="timed_out",
                    detail=f"It took longer than {limit:g} s: shorten length, or ask for fewer epochs or rows.",
                )
            renewal.if_due()
        raise Abandoned

    def _initialization(self, taken: Taken, renewal: Renewal) -> Path:
        """The path of the initialization, which is fetched unless it is among the last that were."""
        path = self._parent / f"initialization {self.name} {taken.sha256}"
        if taken.sha256 not in self._files:
            try:
                with path.open("wb") as file:
                    for piece in blobs.read(taken.blob_id):
                        file.write(piece)
                        renewal.if_due()
            except BlobNotFound:  # the job was deleted, and the adaptation with it
                raise Abandoned from None
            self._files[taken.sha256] = path
        self._files.move_to_end(taken.sha256)
        while len(self._files) > FILES_KEPT:
            self._files.popitem(last=False)[1].unlink()
        return path

    def _forget(self, sha256: str) -> None:
        """Removes the file, since it may be what is wrong: the next try fetches it again."""
        path = self._files.pop(sha256, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def _finish(self, taken: Taken, end: End) -> None:
        match end:
            case Adapted():
                self._succeed(taken, end)
            case NotAdapted():
                self._fail(taken, end.reason, end.detail)
            case Crashed() if taken.tries < MAX_TRIES:
                log.warning("adaptation %s: %s; it is tried again", taken.id, end.how)
                self._forget(taken.sha256)
                with transaction() as session:
                    adaptations.give_back(session, taken, counted=True)
            case Crashed():
                self._fail(taken, "crashed", f"{end.how}; none of {MAX_TRIES} tries came to its end: {end.remedy}.")

    def _succeed(self, taken: Taken, end: Adapted) -> None:
        result: dict[str, Any] = json.loads(Path(end.result).read_bytes())
        weights: Written | None = None
        if end.weights is not None:
            with Path(end.weights).open("rb") as file:
                weights = blobs.write(iter(lambda: file.read(blobs.CHUNK_BYTES), b""))
        with transaction() as session:
            kept = adaptations.succeed(session, taken, result, weights.blob_id if weights else None)
            if not kept and weights:
                blobs.remove(session, [weights.blob_id])
        log.info(
            "adaptation %s: %s",
            taken.id,
            "done" if kept else "its result is dropped: it is another worker's by now, or was deleted",
        )

    def _fail(self, taken: Taken, reason: str, detail: str) -> None:
        with transaction() as session:
            adaptations.fail(session, taken, reason, detail)
        log.info("adaptation %s: failed, %s: %s", taken.id, reason, detail)
