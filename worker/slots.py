"""Works off the queue: claims the job that has waited longest, runs it to its end, and goes on until none waits."""

from __future__ import annotations

import logging
import socket
import time
from datetime import timedelta
from threading import Event
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from service.store.claims import Claim, Claimant, take_next
from service.store.database import is_away, transaction
from worker.folder import WorkerFolder
from worker.process import TrainerProcess
from worker.settings import Settings
from worker.spare import Spares
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)


class Slots:
    """What the slots of a worker share; `work_off_queue` is run by each slot's thread."""

    def __init__(
        self, worker_id: UUID, settings: Settings, spares: Spares, folder: WorkerFolder, stopping: Event
    ) -> None:
        self._worker_id, self._settings = worker_id, settings
        self._spares, self._folder, self._stopping = spares, folder, stopping
        self.host = socket.gethostname()

    def work_off_queue(self) -> None:
        """Returns when no job waits, or the worker is to end."""
        while not self._stopping.is_set():
            # The trainer first: no lease runs, and no job counts as started, while torch is imported.
            trainer = self._spares.take()
            if trainer is None:
                return
            claimed_at = time.monotonic()
            claim = self._claim()
            if claim is None:
                self._spares.give_back(trainer)
                return
            self._run(claim, trainer, claimed_at)

    def _claim(self) -> Claim | None:
        try:
            with transaction() as session:
                return take_next(session, self._claimant(), timedelta(seconds=self._settings.lease_seconds))
        except DBAPIError as error:
            if not is_away(error):
                raise
            # The job stays queued, and the reconciler wakes a worker once the database is back.
            log.warning("the database can't be reached, so no job is claimed: %s", error.orig)
            return None

    def _claimant(self) -> Claimant:
        ready = self._spares.what_it_is
        assert ready is not None, "a trainer was ready"
        return Claimant(
            id=self._worker_id,
            host=self.host,
            devices=ready.devices,
            threads=self._settings.threads_per_slot,
            versions=ready.versions,
        )

    def _run(self, claim: Claim, trainer: TrainerProcess, claimed_at: float) -> None:
        folder = self._folder.attempt(f"{claim.job_id}-{claim.attempt}")
        Supervisor(claim, trainer, folder, self._settings, self._stopping, claimed_at).run()
        self._spares.give_back(trainer)
