"""A job's events: an append-only list, numbered 1, 2, 3, … within the job without gaps.

Kinds and their data:
- `state`: {"state", "from", "reason", "detail"}: the job's state has changed to `state`.
- `progress`: {"phase", "iteration", "iterations", "eta_seconds", "metrics"}: the run has progressed.
- `checkpoint`: {"step"}: a checkpoint was committed.

The number is taken from the job's row in the same transaction, so the row's lock puts writers in order: a reader that has
seen number n has seen everything up to n, and loses nothing by reading on after n.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from service.core.notifications import CHANGES, notify
from service.jobs.tables import Event, Job

Kind = Literal["state", "progress", "checkpoint"]


def append(session: Session, job_id: UUID, kind: Kind, data: dict[str, Any]) -> int:
    """Writes the job's next event in the caller's transaction and returns its number; raises LookupError without the job."""
    session.flush()
    seq = session.scalar(
        update(Job)
        .where(Job.id == job_id)
        .values(last_seq=Job.last_seq + 1)
        .returning(Job.last_seq)
        .execution_options(synchronize_session=False)
    )
    if seq is None:
        raise LookupError(f"there is no job {job_id} to write an event for")
    session.execute(insert(Event).values(job_id=job_id, seq=seq, kind=kind, data=data))
    notify(session, CHANGES, str(job_id))
    return seq


def after(session: Session, job_id: UUID, seq: int, limit: int) -> list[Event]:
    """The first `limit` events with a number above `seq`, in order."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return list(session.scalars(query))
