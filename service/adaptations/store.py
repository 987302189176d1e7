"""Adaptations of learned initializations to a task's rows: asked for, taken by workers with a lease and a fence, ended.

What waits lies in the table itself. A notification wakes the workers at once; one that is lost costs them their pause
between two looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased, defer

from service.adaptations.tables import Adaptation
from service.core import blobs, quotas
from service.core.tables import Blob
from service.jobs import events
from service.jobs.tables import Job

CHANNEL: Final = "amaml_adaptations"
"""Notified, without content, whenever one waits for a worker."""
MAX_ATTEMPTS: Final = 3
MAX_WAITING: Final = 100
"""Of a workspace: each may hold 8 MiB, and a worker for a minute."""
State = Literal["queued", "running", "succeeded", "failed"]
ENDED: Final = frozenset({"succeeded", "failed"})


class TooMany(Exception):
    """The workspace has as many adaptations that wait as it may."""

    def __init__(self) -> None:
        super().__init__(
            f"{MAX_WAITING} adaptations of this workspace wait or run, and no more may: try again when some have ended, or "
            "delete some"
        )


@dataclass(frozen=True)
class Taken:
    """The right to do an adaptation, and what it needs."""

    id: UUID
    attempt: int
    """The fence."""
    request: dict[str, Any]
    blob_id: UUID
    """Of the initialization."""
    sha256: str


def submit(session: Session, workspace_id: UUID, job_id: UUID, request: dict[str, Any]) -> Adaptation | None:
    """Queues it and wakes the workers; None where the job is gone or has no initialization. Raises quotas.Exceeded, TooMany."""
    job = session.scalars(
        select(Job)
        .where(Job.id == job_id, Job.workspace_id == workspace_id, Job.initialization_blob_id.is_not(None))
        .with_for_update(read=True, key_share=True)
    ).one_or_none()
    if job is None:
        return None
    quotas.admit(session, workspace_id, jobs=0, seconds=0)
    waiting = select(func.count()).where(
        Adaptation.workspace_id == workspace_id, Adaptation.state.in_(["queued", "running"])
    )
    if session.scalars(waiting).one() >= MAX_WAITING:
        raise TooMany
    adaptation = Adaptation(workspace_id=workspace_id, job_id=job_id, by=request["by"], request=request)
    session.add(adaptation)
    session.flush()
    session.execute(select(func.pg_notify(CHANNEL, "")))
    return adaptation


@dataclass(frozen=True)
class Found:
    adaptation: Adaptation
    sha256: str | None
    size_bytes: int | None
    """Of the adapted weights."""


def find(session: Session, workspace_id: UUID, adaptation_id: UUID) -> Found | None:
    """With its result, without the request."""
    query = (
        select(Adaptation, Blob.sha256, Blob.size_bytes)
        .outerjoin(Blob, Blob.id == Adaptation.weights_blob_id)
        .where(Adaptation.id == adaptation_id, Adaptation.workspace_id == workspace_id)
        .options(defer(Adaptation.request, raiseload=True))
    )
    row = session.execute(query).one_or_none()
    return None if row is None else Found(*row)


def page(
    session: Session, workspace_id: UUID, job_id: UUID, state: State | None, before: UUID | None, limit: int
) -> list[Found]:
    """The job's, newest first, older than `before`; without requests and results."""
    query = (
        select(Adaptation, Blob.sha256, Blob.size_bytes)
        .outerjoin(Blob, Blob.id == Adaptation.weights_blob_id)
        .where(Adaptation.job_id == job_id, Adaptation.workspace_id == workspace_id)
        .options(defer(Adaptation.request, raiseload=True), defer(Adaptation.result, raiseload=True))
    )
    if state is not None:
        query = query.where(Adaptation.state == state)
    if before is not None:
        query = query.where(Adaptation.id < before)
    rows = session.execute(query.order_by(Adaptation.id.desc()).limit(limit))
    return [Found(*row) for row in rows]


def has_ended(session: Session, adaptation_id: UUID) -> bool:
    """Also where it is gone."""
    state = session.scalar(select(Adaptation.state).where(Adaptation.id == adaptation_id))
    return state is None or state in ENDED


def remove(session: Session, workspace_id: UUID, adaptation_id: UUID) -> bool:
    """Deletes it with its weights, in whatever state; False where there is none."""
    gone = delete(Adaptation).where(Adaptation.id == adaptation_id, Adaptation.workspace_id == workspace_id)
    return bool(_without_weights(session, gone))


def expire(session: Session, older_than: timedelta) -> None:
    """Forgets those that were asked for longer ago than that, with their weights."""
    _without_weights(session, delete(Adaptation).where(Adaptation.created_at < func.now() - older_than))


# What workers do


def take_next(session: Session, lease: timedelta) -> Taken | None:
    """The one that has waited longest, or whose worker was lost; None if none waits. Workspaces take turns: the one for which
    the fewest run comes first, then the one that was served longest ago. One that brought down whatever took it is given up
    here."""
    other = aliased(Adaptation)
    same = other.workspace_id == Adaptation.workspace_id
    running = select(func.count()).where(same, other.state == "running", other.lease_expires_at > func.now())
    served = select(func.max(other.started_at)).where(same)
    lapsed = and_(Adaptation.state == "running", Adaptation.lease_expires_at < func.now())
    waiting = (
        select(Adaptation, Job.initialization_blob_id, Blob.sha256)
        .join(Job, Job.id == Adaptation.job_id)
        .join(Blob, Blob.id == Job.initialization_blob_id)
        .where(or_(Adaptation.state == "queued", lapsed))
        .order_by(running.scalar_subquery(), served.scalar_subquery().nulls_first(), Adaptation.id)
    )
    row = session.execute(waiting.limit(1).with_for_update(skip_locked=True, of=Adaptation)).one_or_none()
    if row is None:
        return None
    adaptation, blob_id, sha256 = row
    assert blob_id is not None, "a blob of this id was joined"
    assert sha256 is not None, "initializations are finished blobs"
    if adaptation.attempt >= MAX_ATTEMPTS:
        _end(
            session, adaptation, "failed", "crashed",
            f"What worked on it died {adaptation.attempt} times: send fewer rows, and look into the workers' logs and memory.",
        )  # fmt: skip
        return take_next(session, lease)
    adaptation.attempt += 1
    adaptation.state = "running"
    adaptation.lease_expires_at = func.now() + lease
    adaptation.started_at = func.now()
    return Taken(adaptation.id, adaptation.attempt, adaptation.request, blob_id, sha256)


def renew(session: Session, taken: Taken, lease: timedelta) -> bool:
    """Counts the lease anew from now; False where it is another's by now, or gone."""
    held = update(Adaptation).where(_held(taken)).values(lease_expires_at=func.now() + lease)
    return session.scalar(held.returning(Adaptation.id)) is not None


def give_back(session: Session, taken: Taken, *, counted: bool) -> None:
    """Leaves it to whichever worker comes first; `counted`: as one of its attempts."""
    left = {"state": "queued", "lease_expires_at": None, "attempt": Adaptation.attempt - (0 if counted else 1)}
    session.execute(update(Adaptation).where(_held(taken)).values(left))
    session.execute(select(func.pg_notify(CHANNEL, "")))


def succeed(session: Session, taken: Taken, result: dict[str, Any], weights_blob_id: UUID | None) -> bool:
    """Its result, for who waits for it. False as in `renew`."""
    adaptation = _locked(session, taken)
    if adaptation is None:
        return False
    adaptation.result = result
    adaptation.weights_blob_id = weights_blob_id
    if weights_blob_id is not None:
        blobs.give(session, weights_blob_id, adaptation.workspace_id)
    _end(session, adaptation, "succeeded", None, None)
    return True


def fail(session: Session, taken: Taken, reason: str, detail: str) -> None:
    """Ends it with a machine word and a sentence that names the remedy; nothing where it is another's by now, or gone."""
    adaptation = _locked(session, taken)
    if adaptation is not None:
        _end(session, adaptation, "failed", reason, detail)


def _held(taken: Taken) -> ColumnElement[bool]:
    return and_(Adaptation.id == taken.id, Adaptation.attempt == taken.attempt, Adaptation.state == "running")


def _locked(session: Session, taken: Taken) -> Adaptation | None:
    query = select(Adaptation).where(_held(taken)).options(defer(Adaptation.request)).with_for_update()
    return session.scalars(query).one_or_none()


def _end(session: Session, adaptation: Adaptation, state: State, reason: str | None, detail: str | None) -> None:
    adaptation.state, adaptation.status_reason, adaptation.status_detail = state, reason, detail
    adaptation.lease_expires_at = None
    adaptation.ended_at = func.now()
    begun = and_(Adaptation.id == adaptation.id, Adaptation.started_at.is_not(None))
    quotas.spend(session, adaptation.workspace_id, begun, Adaptation.started_at)
    session.execute(select(func.pg_notify(events.CHANNEL, str(adaptation.id))))


def _without_weights(session: Session, gone: Any) -> int:
    removed = session.execute(
        gone.returning(Adaptation.id, Adaptation.weights_blob_id).execution_options(synchronize_session=False)
    ).all()
    # Whoever waits for one of them is told that there is nothing to wait for.
    for adaptation_id, _ in removed:
        session.execute(select(func.pg_notify(events.CHANNEL, str(adaptation_id))))
    blobs.remove(session, [blob_id for _, blob_id in removed if blob_id is not None])
    return len(removed)
