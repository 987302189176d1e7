"""A held lease: writes under the fence, and how long worker and trainer may rely on the job being theirs.

A renewal hands the trainer a deadline, counted from the *start* of the renewal's transaction, that lies before the
lease's end. Past it both stop by themselves, since the job may be another's by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service.core.database import is_away, transaction
from service.jobs import claims
from service.jobs.claims import Claim
from service.jobs.tables import Job
from service.jobs.transitions import State

log = logging.getLogger(__name__)

T = TypeVar("T")

TRUSTED = 0.8
"""Share of the lease for which it is relied on. In the rest of it the trainer ends, before another may start."""
RETRY_SECONDS = 0.2


class TrustLost(Exception):
    """The database couldn't be reached for so long that the lease may lapse."""


class HeldLease:
    """The lease of a claim whose transaction began at `claimed_at` (time.monotonic())."""

    def __init__(self, claim: Claim, seconds: float, claimed_at: float) -> None:
        self._claim, self._seconds = claim, seconds
        self._renewed_at = claimed_at

    @property
    def trusted_until(self) -> float:
        """The time.monotonic() until which the job is surely this worker's."""
        return self._renewed_at + TRUSTED * self._seconds

    @property
    def is_due(self) -> bool:
        """Whether a third of the lease has passed since the last renewal."""
        return time.monotonic() - self._renewed_at > self._seconds / 3

    def write(self, work: Callable[[Session, Job], T]) -> T:
        """Does the work in one transaction that holds the claim, and renews the lease; raises StaleFence, TrustLost.

        The work may be done again when the database went away amid it, so it changes nothing but the database.
        """

        def once() -> tuple[float, T]:
            started = time.monotonic()
            with transaction() as session:
                job = claims.hold(session, self._claim)
                claims.QUEUE.extend(job, timedelta(seconds=self._seconds))
                return started, work(session, job)

        self._renewed_at, result = self.reach(once)
        return result

    def look(self) -> State:
        """The job's state; raises StaleFence, TrustLost."""

        def once() -> State:
            with transaction() as session:
                return claims.read_state(session, self._claim)

        return self.reach(once)

    def reach(self, work: Callable[[], T]) -> T:
        """Does work that needs the database, and tries again while that is away; raises TrustLost once the lease may lapse."""
        failures = 0
        while True:
            try:
                return work()
            except DBAPIError as error:
                if not is_away(error):
                    raise
                if time.monotonic() > self.trusted_until:
                    raise TrustLost(f"the database can't be reached: {error.orig}") from error
                if failures == 0:
                    log.warning("job %s: the database can't be reached, trying on: %s", self._claim.id, error.orig)
                failures += 1
                time.sleep(RETRY_SECONDS)
