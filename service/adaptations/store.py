"""Queries on adaptations of learned initializations: users submit and read them, workers take them from a leased queue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session, aliased, defer

from service.adaptations.tables import Adaptation
from service.adaptations.transitions import ADAPTATION, ENDED, State
from service.core import blobs, quotas
from service.core.leased_queue import Held, LeasedQueue
from service.core.notifications import CHANGES, WORK, notify
from service.core.refusals import TooMany
from service.core.tables import Blob
from service.jobs.tables import Job

MAX_TRIES: Final = 3
MAX_WAITING: Final = 100
"""The most unfinished adaptations of a workspace: each may take 8 MiB, and a worker for a minute."""
QUEUE: Final = LeasedQueue(Adaptation, ADAPTATION, defer(Adaptation.request))


@dataclass(frozen=True)
class Taken(Held):
    """The right to carry out an adaptation, and what that needs."""

    request: dict[str, Any]
    tries: int
    """How often it was tried, including this time."""
    blob_id: UUID
    """Of the initialization."""
    sha256: str


def submit(session: Session, workspace_id: UUID, job_id: UUID, request: dict[str, Any]) -> Adaptation | None:
    """Queues it and wakes workers; None if the job was deleted or has no initialization. Raises quotas.Exceeded, TooMany."""
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
        raise TooMany(
            f"{MAX_WAITING} adaptations of this workspace wait or run, and no more may: try again when some have ended, or "
            "delete some."
        )
    adaptation = Adaptation(workspace_id=workspace_id, job_id=job_id, by=request["by"], request=request)
    session.add(adaptation)
    session.flush()
    notify(session, WORK, "adaptations")
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
    """The job's adaptations that are older than `before`, newest first, without requests and results."""
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
    """Whether it has ended; also true if it was deleted."""
    state = session.scalar(select(Adaptation.state).where(Adaptation.id == adaptation_id))
    return state is None or state in ENDED


def remove(session: Session, workspace_id: UUID, adaptation_id: UUID) -> bool:
    """Deletes it with its weights, in any state; False if there is no such adaptation."""
    gone = delete(Adaptation).where(Adaptation.id == adaptation_id, Adaptation.workspace_id == workspace_id)
    return bool(_without_weights(session, gone))


def expire(session: Session, older_than: timedelta) -> None:
    """Deletes those that were submitted longer ago than that, with their weights."""
    _without_weights(session, delete(Adaptation).where(Adaptation.created_at < func.now() - older_than))


# What workers do


def take_next(session: Session, lease: timedelta) -> Taken | None:
    """The adaptation that has waited longest; None if none waits. Workspaces take turns: first the one of which the fewest run,
    among these the one that was served longest ago."""
    other = aliased(Adaptation)
    same = other.workspace_id == Adaptation.workspace_id
    running = select(func.count()).where(same, other.state == "running")
    served = select(func.max(other.started_at)).where(same)
    waiting = (
        select(Adaptation, Job.initialization_blob_id, Blob.sha256)
        .join(Job, Job.id == Adaptation.job_id)
        .join(Blob, Blob.id == Job.initialization_blob_id)
        .where(QUEUE.waits())
        .order_by(running.scalar_subquery(), served.scalar_subquery().nulls_first(), Adaptation.id)
    )
    row = QUEUE.lock_next(session, waiting)
    if row is None:
        return None
    adaptation, blob_id, sha256 = row
    assert blob_id is not None, "a blob of this id was joined"
    assert sha256 is not None, "initializations are finished blobs"
    QUEUE.take(adaptation, lease)
    QUEUE.become(adaptation, "running")
    adaptation.tries += 1
    adaptation.started_at = func.now()
    return Taken(adaptation.id, adaptation.attempt, adaptation.request, adaptation.tries, blob_id, sha256)


def give_back(session: Session, taken: Taken, *, counted: bool) -> None:
    """Puts it back into the queue; `counted`: whether this was one of its tries."""
    adaptation = QUEUE.hold(session, taken)
    if adaptation is None:
        return
    if not counted:
        adaptation.tries -= 1
    _queue_again(session, adaptation)


def lapsed(session: Session, adaptation: Adaptation) -> None:
    """Its worker was lost: another will do it, unless that has happened too often."""
    if adaptation.tries < MAX_TRIES:
        _queue_again(session, adaptation)
        return
    _end(
        session, adaptation, "failed", "crashed",
        f"The process that worked on it died {adaptation.tries} times: send fewer rows, and check the workers' logs and memory.",
    )  # fmt: skip


def succeed(session: Session, taken: Taken, result: dict[str, Any], weights_blob_id: UUID | None) -> bool:
    """Ends it with its result; False if another has taken it, or it was deleted."""
    adaptation = QUEUE.hold(session, taken)
    if adaptation is None:
        return False
    adaptation.result = result
    adaptation.weights_blob_id = weights_blob_id
    if weights_blob_id is not None:
        blobs.give(session, weights_blob_id, adaptation.workspace_id)
    _end(session, adaptation, "succeeded", None, None)
    return True


def fail(session: Session, taken: Taken, reason: str, detail: str) -> None:
    """Ends it with a word for programs and a sentence with the remedy, unless another has taken it, or it was deleted."""
    adaptation = QUEUE.hold(session, taken)
    if adaptation is not None:
        _end(session, adaptation, "failed", reason, detail)


def _queue_again(session: Session, adaptation: Adaptation) -> None:
    QUEUE.give_back(adaptation)
    notify(session, WORK, "adaptations")


def _end(session: Session, adaptation: Adaptation, state: State, reason: str | None, detail: str | None) -> None:
    QUEUE.become(adaptation, state)
    adaptation.status_reason, adaptation.status_detail = reason, detail
    adaptation.ended_at = func.now()
    begun = and_(Adaptation.id == adaptation.id, Adaptation.started_at.is_not(None))
    quotas.spend(session, adaptation.workspace_id, begun, Adaptation.started_at)
    notify(session, CHANGES, str(adaptation.id))


def _without_weights(session: Session, gone: Any) -> int:
    removed = session.execute(
        gone.returning(Adaptation.id, Adaptation.weights_blob_id).execution_options(synchronize_session=False)
    ).all()
    # Notifies requests that wait for one of them, so that they end at once.
    for adaptation_id, _ in removed:
        notify(session, CHANGES, str(adaptation_id))
    blobs.remove(session, [blob_id for _, blob_id in removed if blob_id is not None])
    return len(removed)
