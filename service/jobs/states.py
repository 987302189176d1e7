"""A job's change of state: asked of the table of legal steps, written, told as an event, in the caller's transaction."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import func
from sqlalchemy.orm import Session

from service.jobs import events
from service.jobs.tables import Job
from service.jobs.transitions import FINAL, JOB, LEASED, State


def become(session: Session, job: Job, target: State, *, reason: str | None = None, detail: str | None = None) -> None:
    """The job, whose row the caller has locked, becomes `target`; raises IllegalTransition.

    Keeps what follows from the state alone: no lease outside the leased states, a time of ending in the final ones.
    A step to a leased state from another needs the lease set on `job` first.
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
