"""Works off the queue: claims the job that has waited longest, runs it to its end, and goes on until none waits.

A wake-up is the usual cause. Where none comes (the broker is away for long, or the consumer has gone silent) and jobs wait
though a slot is idle, the worker takes them up by itself.
"""

from __future__ import annotations

import logging
import socket
import time
from datetime import timedelta
from threading import Condition, Event, Thread
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from service.core.database import is_away, transaction
from service.jobs.claims import Claim, Claimant, may_claim, some_wait, take_next
from service.studies import store as studies
from worker.jobs.prestarted_trainers import PrestartedTrainers
from worker.jobs.supervisor import Supervisor
from worker.maintenance.folder import WorkerFolder
from worker.processes.failpoint import failpoint
from worker.processes.parent import TrainerProcess
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

OVERDUE = timedelta(seconds=3)
"""A job that has been due for longer than this wasn't helped by the wake-up that the reconciler sent again."""


class Slots:
    """The slots of a worker: however often `work_off_queue` is called, no more than `worker_slots` jobs run at once."""

    def __init__(
        self,
        worker_id: UUID,
        settings: WorkerSettings,
        trainers: PrestartedTrainers,
        folder: WorkerFolder,
        stopping: Event,
    ) -> None:
        self._worker_id, self._settings = worker_id, settings
        self._trainers, self._folder, self._stopping = trainers, folder, stopping
        self.host = socket.gethostname()
        self._working = 0
        self._changed = Condition()

    def work_off_queue(self) -> None:
        """Returns when no job waits, no slot is idle, or the worker is to end."""
        with self._changed:
            if self._working >= self._settings.worker_slots:
                return
            self._working += 1
        try:
            self._run_one_after_another()
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def catch_up(self) -> None:
        """Works off the queue in a thread of its own, without a wake-up, where a job is overdue and a slot idle."""
        ready = self._trainers.what_it_is
        if ready is None or self._working >= self._settings.worker_slots:
            return
        with transaction() as session:
            gpus = [] if ready.gpu is None else [ready.gpu.name]
            overdue = some_wait(session, OVERDUE, may_claim(session, ready.devices), gpus)
        if overdue:
            log.warning("jobs wait though no wake-up comes: the queue is worked off without one")
            Thread(target=self.work_off_queue, name="overdue", daemon=True).start()

    def wait_until_idle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._working == 0)

    def _run_one_after_another(self) -> None:
        while not self._stopping.is_set():
            # The trainer first: no lease runs, and no job counts as started, while torch is imported.
            trainer = self._trainers.take()
            if trainer is None:
                return
            claimed_at = time.monotonic()
            claim = self._claim(trainer)
            if claim is None:
                self._trainers.give_back(trainer)
                return
            self._run(claim, trainer, claimed_at)

    def _claim(self, trainer: TrainerProcess) -> Claim | None:
        try:
            with transaction() as session:
                claim = take_next(session, self._claimant(trainer), timedelta(seconds=self._settings.lease_seconds))
                failpoint("claim.before_commit")
        except DBAPIError as error:
            if not is_away(error):
                raise
            # The job stays queued, and the reconciler wakes a worker once the database is back.
            log.warning("the database can't be reached, so no job is claimed: %s", error.orig)
            return None
        failpoint("claim.committed")
        return claim

    def _claimant(self, trainer: TrainerProcess) -> Claimant:
        ready = self._trainers.what_it_is
        assert ready is not None, "a trainer was ready"
        return Claimant(
            id=self._worker_id,
            host=self.host,
            devices=ready.devices,
            threads=self._settings.threads_per_slot,
            versions=ready.versions,
            trainer_pid=trainer.pid,
            gpu=None if ready.gpu is None else ready.gpu.name,
        )

    def _run(self, claim: Claim, trainer: TrainerProcess, claimed_at: float) -> None:
        folder = self._folder.attempt(f"{claim.id}-{claim.attempt}")
        try:
            Supervisor(claim, trainer, folder, self._settings, self._stopping, claimed_at).run()
        except BaseException:
            trainer.kill()  # nobody else knows of it
            raise
        self._trainers.give_back(trainer)
        if claim.study_id is not None:
            self._advance(claim.study_id)

    def _advance(self, study_id: UUID) -> None:
        """Lets the study's next job into the queue at once; if this worker dies before, the reconciler does it."""
        failpoint("study.before_advance")
        try:
            with transaction() as session:
                studies.advance(session, study_id)
                failpoint("study.before_commit")
        except DBAPIError as error:
            if not is_away(error):
                raise
            log.warning("the database can't be reached, so study %s waits for the reconciler: %s", study_id, error.orig)
