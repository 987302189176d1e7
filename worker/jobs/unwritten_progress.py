"""Progress that the trainer has reported and that isn't written yet."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from service.jobs import progress
from service.jobs.tables import Job
from worker.processes.protocol import Evaluated, ProgressReport

LONGEST_BETWEEN_EVENTS = 10.0


class UnwrittenProgress:
    """Collects the trainer's reports: `write` writes them in the caller's transaction, and `written` then clears them."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._latest: ProgressReport | None = None
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._evaluations: list[Evaluated] = []
        self._event_phase: str | None = None
        self._event_at = float("-inf")

    def take(self, told: ProgressReport) -> None:
        self._latest = told
        for name, points in told.metrics.items():
            self._points.setdefault(name, []).extend(points)
        self._evaluations += told.evaluations

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to write."""
        return self._latest is not None

    def write(self, session: Session, job: Job) -> None:
        if self._latest is None:
            return
        progress.advance(job, self._latest.phase, self._latest.iteration, self._latest.eta_seconds)
        progress.add_metrics(session, job, self._points)
        progress.add_evaluations(session, job, [one.model_dump() for one in self._evaluations])
        if self._event_is_due(self._latest):
            progress.write_event(session, job)

    def written(self) -> None:
        """The transaction of `write` was committed."""
        if self._latest is not None and self._event_is_due(self._latest):
            self._event_phase, self._event_at = self._latest.phase, time.monotonic()
        self._latest, self._points, self._evaluations = None, {}, []

    def _event_is_due(self, latest: ProgressReport) -> bool:
        """Whether an event is due: one a second at first, ever fewer as the attempt goes on, and one for each new phase."""
        now = time.monotonic()
        between = min(max(1.0, (now - self._began) / 100), LONGEST_BETWEEN_EVENTS)
        last = latest.iteration == latest.iterations
        return latest.phase != self._event_phase or now - self._event_at >= between or last
