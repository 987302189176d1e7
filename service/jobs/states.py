"""A job's change of state: checked against the table of legal steps, written, and recorded as an event, in one transaction."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import func
from sqlalchemy.orm import Session

from service.jobs import events
from service.jobs.tables import Job
from service.jobs.transitions import FINAL, JOB, LEASED, State


def become(session: Session, job: Job, target: State, *, reason: str | None = None, detail: str | None = None) -> None:
    """Changes the job's state to `target`; the caller has locked its row. Raises IllegalTransition.

    Also sets what follows from the state alone: no lease outside the leased states, `ended_at` in the final ones. Before a step
    from another state to a leased one, the caller sets the lease on `job`.
    """
    source = cast(State, job.state)
    JOB.check(job.state, target)
    job.state = target
    job.status_reason, job.status_detail = reason, detail
    if target not in LEASED:
        job.lease_expires_at = None
        job.eta_seconds = None
        job.phase = None
    job.ended_at = cast(Any, func.now()) if target in FINAL else None
    events.append(session, job.id, "state", {"state": target, "from": source, "reason": reason, "detail": detail})
