"""Supervises one attempt of one job, from its claim to its end.

The supervisor runs in the thread of a Celery task. It hands the trainer its files, keeps the lease alive, writes what
the trainer reports, and ends the attempt when the trainer has finished, the user asks for it, or an accident happens. When the
fence is stale the attempt is over: the trainer is killed and all that it made is dropped.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Literal, NoReturn, TypeVar
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy.orm import Session

from amaml.spec import JobSpec
from service.core import blobs
from service.jobs import attempts, progress
from service.jobs.claims import Claim, StaleFence
from service.jobs.tables import Job
from service.jobs.transitions import State
from worker.jobs.inputs import MissingInput, NotCheckedYet, inputs
from worker.jobs.lease import HeldLease, TrustLost
from worker.jobs.unwritten_progress import UnwrittenProgress
from worker.processes.crashes import classify, oom_kills
from worker.processes.failpoint import failpoint
from worker.processes.parent import Gone, TrainerProcess
from worker.processes.protocol import Accident, Checkpoint, Failed, Lease, ProgressReport, Run, Stop, Stopped, Succeeded
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 0.5
"""Between two reads of the job's row: how soon a cancel is noticed, and how often progress is written."""
PIECE_BYTES = 1 << 20


class AttemptOver(Exception):
    """The attempt has ended and its end is written; the message is the reason."""


class Supervisor:
    """Runs a claim to its end. `run` returns when nothing of the attempt is left on this machine; the trainer is alive
    then if it has said how the job ended and can take another, and killed otherwise.

    `claimed_at`: time.monotonic() before the claim's transaction began. `stopping`: set when the worker shuts down.
    """

    def __init__(
        self,
        claim: Claim,
        trainer: TrainerProcess,
        folder: Path,
        settings: WorkerSettings,
        stopping: Event,
        claimed_at: float,
    ) -> None:
        self._claim, self._trainer, self._folder = claim, trainer, folder
        self._settings, self._stopping = settings, stopping
        self._lease = HeldLease(claim, settings.lease_seconds, claimed_at)
        self._unwritten = UnwrittenProgress()
        self._next_beat = claimed_at + BEAT_SECONDS
        self._advanced_at = claimed_at
        self._stage: Literal["waiting", "working", "done"] = "waiting"  # where the trainer is in this attempt
        self._has_told = False
        self._asked_to_stop = False
        self._kill_at = float("inf")
        self._oom_kills = oom_kills()

    def run(self) -> None:
        claim = self._claim
        log.info("job %s: attempt %d begins in trainer %d", claim.id, claim.attempt, self._trainer.pid)
        try:
            self._supervise()
        except AttemptOver as end:
            log.info("job %s: attempt %d ended: %s", claim.id, claim.attempt, end)
        except (StaleFence, TrustLost) as lost:
            log.warning("job %s: %s; the trainer is killed and what it made is dropped", claim.id, lost)
        finally:
            if self._stage == "working":
                self._trainer.kill()
            shutil.rmtree(self._folder, ignore_errors=not self._folder.exists())

    def _supervise(self) -> NoReturn:
        try:
            self._begin()
            while True:
                self._watch()
        except OSError as error:  # this process's own: the trainer reports what it meets itself
            self._end_crashed("lost_worker", f"The worker can't keep the job's files: {error}")

    # Beginning

    def _begin(self) -> None:
        """Fetches the job's files and hands the job to the trainer."""
        claim = self._claim
        try:
            spec = JobSpec.from_document(claim.spec)
            blob_ids = self._lease.reach(lambda: inputs(claim, spec))
        except ValidationError as error:
            self._end_failed("bad_spec", f"This worker can't read the job's spec: {error}.")
        except MissingInput as missing:
            self._end_failed("bad_data", str(missing))
        except NotCheckedYet:
            self._end_crashed("lost_worker", "Its data set was uploaded again and is being checked anew")
        failpoint("input.found")
        try:
            self._folder.mkdir()
            paths = {name: self._fetch(name, blob_id) for name, blob_id in blob_ids.items()}
        except blobs.BlobNotFound as error:
            self._end_failed(
                "bad_data", f"What the job reads was deleted while it was fetched ({error}): submit it anew."
            )
        failpoint("input.fetched")
        self._stage = "working"
        self._trainer.send(
            Run(
                job_id=str(claim.id),
                attempt=claim.attempt,
                spec=spec.canonical(),
                datasets={str(getattr(spec.family, "dataset", "")): paths["dataset"]} if "dataset" in paths else {},
                initialization=paths.get("initialization"),
                checkpoint=paths.get("checkpoint"),
                folder=str(self._folder),
                device=claim.runtime["device"],
                threads=claim.runtime["threads"],
                deadline=self._lease.trusted_until,
            )
        )
        failpoint("input.handed_over")
        self._advanced_at = time.monotonic()

    def _fetch(self, name: str, blob_id: UUID) -> str:
        path = self._folder / name

        def copy() -> None:
            with path.open("wb") as file:
                for piece in blobs.read(blob_id):
                    file.write(piece)
                    self._keep_alive()

        self._lease.reach(copy)
        return str(path)

    # Watching

    def _watch(self) -> None:
        """Handles the trainer's next message, if there is one, and does what is due."""
        match self._trainer.receive(self._next_beat - time.monotonic()):
            case ProgressReport() as told:
                self._take(told)
            case Checkpoint(step=step, path=path):
                self._commit_checkpoint(step, Path(path))
            case Succeeded() as end:
                self._stage = "done"
                self._end_succeeded(end)
            case Failed(reason=reason, detail=detail):
                self._stage = "done"
                self._end_failed(reason, detail)
            case Stopped():
                self._stage = "done"
                self._end_stopped()
            case Accident(detail=detail):  # the trainer is killed, since the cause may be its own state
                self._end_crashed("lost_worker", detail)
            case Gone():
                crash, sentence = classify(self._trainer.wait(), self._oom_kills)
                self._end_crashed(crash, sentence)
        self._keep_alive()

    def _take(self, told: ProgressReport) -> None:
        self._unwritten.take(told)
        self._advanced_at = time.monotonic()
        if not self._has_told:
            self._has_told = True
            self._next_beat = self._advanced_at  # the first sign of life is shown at once

    def _keep_alive(self) -> None:
        """Done every BEAT: writes progress, renews the lease, does what the user asked for, ends a trainer that stalls."""
        if time.monotonic() < self._next_beat:
            return
        write_now = self._unwritten.is_waiting or self._lease.is_due
        state = self._write(_state) if write_now else self._lease.look()
        self._obey(state)
        stall = self._settings.stall_seconds
        if time.monotonic() - self._advanced_at > stall:
            self._trainer.kill()
            self._end_crashed("stalled", f"The trainer got no further for {stall:g} s and was killed")
        self._next_beat = time.monotonic() + BEAT_SECONDS

    def _obey(self, state: State) -> None:
        """Ends the attempt if it was cancelled; has the trainer stop if it was paused, or the worker shuts down."""
        if state == "cancelling":
            self._stop_now()
        stopping = self._stopping.is_set()
        if self._stage == "done" or not (stopping or state == "pausing"):
            return
        if self._stage == "waiting":
            self._stop_now()
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._trainer.send(Stop(checkpoint=True))
        if stopping:
            self._kill_at = min(self._kill_at, time.monotonic() + self._settings.shutdown_seconds)
        if time.monotonic() >= self._kill_at:
            self._stop_now()

    def _stop_now(self) -> NoReturn:
        if self._stage == "working":
            self._trainer.kill()
        failpoint("cancel.trainer_killed")
        self._end_stopped()

    # Writing

    def _write(self, work: Callable[[Session, Job], T]) -> T:
        """Writes what the trainer has reported, then does the work, in one transaction under the fence; renews the lease."""

        def both(session: Session, job: Job) -> T:
            self._unwritten.write(session, job)
            return work(session, job)

        result = self._lease.write(both)
        self._unwritten.written()
        self._trainer.send(Lease(deadline=self._lease.trusted_until))
        return result

    def _commit_checkpoint(self, step: int, path: Path) -> None:
        """Commits the checkpoint, then removes the file, by which the trainer knows that it may write the next."""
        failpoint("checkpoint.announced")
        blob_id = self._upload(path)
        failpoint("checkpoint.uploaded")

        def commit(session: Session, job: Job) -> None:
            if not progress.add_checkpoint(session, job, step, blob_id):
                blobs.remove(session, [blob_id])
            failpoint("checkpoint.before_commit")

        self._write(commit)
        failpoint("checkpoint.committed")
        path.unlink()

    def _upload(self, path: Path) -> UUID:
        return self._lease.reach(lambda: blobs.write(self._pieces(path)).blob_id)

    def _pieces(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                self._keep_alive()
                yield piece
                failpoint("upload.amid")

    # Ending

    def _end_succeeded(self, end: Succeeded) -> NoReturn:
        blob_id = self._upload(Path(end.path))
        failpoint("finish.uploaded")

        def finish(session: Session, job: Job) -> None:
            attempts.succeeded(
                session, job, blob_id, end.parameters, iteration=end.iteration, reason=end.reason, detail=end.detail
            )
            failpoint("finish.before_commit")

        self._write(finish)
        failpoint("finish.committed")
        raise AttemptOver("succeeded")

    def _end_failed(self, reason: str, detail: str) -> NoReturn:
        self._write(lambda session, job: attempts.failed(session, job, reason, detail))
        raise AttemptOver(f"{reason}: {detail}")

    def _end_crashed(self, crash: attempts.Crash, sentence: str) -> NoReturn:
        def requeue(session: Session, job: Job) -> None:
            attempts.crashed(session, job, crash, sentence)
            failpoint("requeue.before_commit")

        failpoint("requeue.begun")
        self._write(requeue)
        failpoint("requeue.committed")
        raise AttemptOver(f"{crash}: {sentence}")

    def _end_stopped(self) -> NoReturn:
        def stop(session: Session, job: Job) -> None:
            attempts.stopped(session, job)
            failpoint("stop.before_commit")

        failpoint("stop.begun")
        self._write(stop)
        failpoint("stop.committed")
        raise AttemptOver("stopped as asked")


def _state(_: Session, job: Job) -> State:
    return job.state  # type: ignore[return-value]
