"""Repairs what accidents leave behind: lapsed leases, lost wake-ups, rows that nobody needs any more.

Every worker process has a reconciler; the one that holds the lease of this role works. Each repair locks the row it
repairs and looks again, so a second one that believes it leads does no harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import exists, literal, select, union_all
from sqlalchemy.orm import Session

import service.tables  # noqa: F401 - the sweep of blobs asks every table that refers to one
from service.adaptations import store as adaptations
from service.core import blobs, idempotency, leadership, outbox, quotas
from service.core.database import transaction
from service.core.leased_queue import LeasedQueue
from service.datasets import checks
from service.jobs import attempts, claims
from service.studies import store as studies
from service.webhooks import deliveries
from service.workers import store as workers
from worker.processes.failpoint import failpoint

log = logging.getLogger(__name__)

ROLE = "reconciler"
ADAPTATIONS_LAST = timedelta(hours=24)
SECONDS = 1.0
"""Between rounds: a lapsed lease is noticed within this time."""
LEASE = timedelta(seconds=3)
STALE_AFTER = timedelta(seconds=1)
"""A job that has been due for that long has lost its wake-up, or all slots are busy: another wake-up does no harm."""
EXPLAIN_SECONDS = 5.0
TIDY_SECONDS = 60.0

QUEUES: Final[dict[str, tuple[LeasedQueue[Any], Callable[[Session, Any], None]]]] = {
    "job": (claims.QUEUE, attempts.lapsed),
    "data set": (checks.QUEUE, checks.lapsed),
    "adaptation": (adaptations.QUEUE, adaptations.lapsed),
    "delivery": (deliveries.QUEUE, deliveries.lapsed),
}
"""Every leased queue, and what becomes of a row whose lease has lapsed."""


class Reconciler:
    """`round` does what is due, if this process leads."""

    def __init__(self, worker_id: UUID, adaptations_last: timedelta = ADAPTATIONS_LAST) -> None:
        self._adaptations_last = adaptations_last
        self._worker_id = worker_id
        self._leads = False
        self._next_explanation = self._next_tidying = time.monotonic()

    def round(self) -> None:
        with transaction() as session:  # one for all checks: an idle worker should cost next to nothing
            leads = leadership.lead(session, ROLE, self._worker_id, LEASE)
            lapsed = with_lapsed_leases(session) if leads else []
            if leads:
                wake_for_stale_jobs(session)
        if leads != self._leads:
            log.info("this worker %s the repairs", "leads" if leads else "no longer leads")
            self._leads = leads
        if not leads:
            return
        for noun in lapsed:
            while end_one_lapsed_lease(noun):
                pass
        advance_studies()
        now = time.monotonic()
        if now >= self._next_explanation:
            explain_missing_device()
            self._next_explanation = now + EXPLAIN_SECONDS
        if now >= self._next_tidying:
            tidy(self._adaptations_last)
            self._next_tidying = now + TIDY_SECONDS

    def close(self) -> None:
        """Lets another lead at once."""
        with transaction() as session:
            leadership.give_back(session, ROLE, self._worker_id)


def wake_for_stale_jobs(session: Session) -> None:
    """Re-sends a wake-up when jobs wait that a living worker could run."""
    if not claims.some_wait(session, STALE_AFTER, ["auto", "cpu", "cuda"]):
        return  # most of the time this is the only query
    if claims.some_wait(session, STALE_AFTER, ["auto", "cpu"]) or (
        workers.any_with(session, "cuda") and claims.some_wait(session, STALE_AFTER, ["cuda"], workers.gpus(session))
    ):
        outbox.put_unless_recent(session, "wake", STALE_AFTER)


def explain_missing_device() -> None:
    """Writes the reason into jobs that wait for a device which no worker has."""
    with transaction() as session:
        claims.explain_missing_device(session, cuda=workers.any_with(session, "cuda"), gpus=workers.gpus(session))


def with_lapsed_leases(session: Session) -> list[str]:
    """The queues in which a lease has lapsed."""
    some = [select(literal(noun)).where(exists().where(queue.has_lapsed())) for noun, (queue, _) in QUEUES.items()]
    return list(session.scalars(union_all(*some)))


def end_one_lapsed_lease(noun: str) -> bool:
    """Ends the lease that lapsed first in that queue, in a transaction of its own; False if there is none."""
    queue, end = QUEUES[noun]
    with transaction() as session:
        row = queue.lapsed(session)
        if row is None:
            return False
        log.warning("%s %s: the lease of attempt %d has lapsed", noun, row.id, row.attempt)
        end(session, row)
        failpoint("lapse.before_commit")
    failpoint("lapse.committed")
    return True


def advance_studies() -> None:
    """Queues the next jobs of studies that have room for them, and ends studies whose jobs have all ended."""
    with transaction() as session:
        due = studies.due(session)
    for study_id in due:
        with transaction() as session:
            studies.advance(session, study_id)


def tidy(adaptations_last: timedelta = ADAPTATIONS_LAST) -> None:
    """Removes what has served its time."""
    steps: list[Callable[[Session], object]] = [
        lambda session: workers.prune(session, timedelta(minutes=5)),
        lambda session: outbox.prune(session, timedelta(hours=1)),
        lambda session: adaptations.expire(session, adaptations_last),
        idempotency.expire,
        quotas.forget,
        blobs.sweep,
        lambda session: deliveries.prune(session, timedelta(days=30)),
    ]
    for step in steps:
        with transaction() as session:
            step(session)
