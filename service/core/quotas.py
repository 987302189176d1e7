"""What a workspace uses of its quotas, and the refusal of requests that would exceed them.

Compute is counted by the hour in a ledger, to which each attempt adds its seconds when it ends, so it still counts after the job
has been deleted. What unfinished jobs will still take is estimated, so that the queue as a whole stays within the quota.

Refusals are exact, yet submissions of a workspace don't wait for each other: far from a bound nothing is locked, and only near
a bound is the use counted again under a lock.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    delete,
    extract,
    func,
    literal,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core.quota_bounds import Bounds, Name, bounds
from service.core.settings import settings
from service.core.tables import Blob, ComputeUse, Workspace
from service.jobs.tables import UNFINISHED, Attempt, Job

DAY: Final = timedelta(hours=24)
_KEPT: Final = timedelta(days=30)
NEAR: Final = 100
"""More submissions than are ever under way at once. If a workspace has room for so many more jobs, submissions at the same time
can't exceed its bound."""
LONG: Final = 500
"""Jobs. To count a longer queue takes longer than a submission should, so its count is used for COUNTED_SECONDS, as long as MANY
more submissions, which are more than can come within that time, would use less than half of the quota."""
MANY: Final = 1_000
COUNTED_SECONDS: Final = 0.5
ROOM_SECONDS: Final = 5.0
"""How long it is assumed that there still is room for files, once there was."""


class Exceeded(Exception):
    """The workspace's quota doesn't allow it."""

    def __init__(self, name: Name, bound: int, used: float, asked: float) -> None:
        super().__init__(f"quota {name}: {used:g} of {bound} are used, {asked:g} more are requested")
        self.name, self.bound, self.used, self.asked = name, bound, used, asked


class Use(NamedTuple):
    """What a workspace uses now, and its bounds."""

    bounds: Bounds
    queued_jobs: int
    running_jobs: int
    compute_seconds: float
    """Seconds of attempts in the last 24 hours, including those that run."""
    expected_seconds: float
    """What unfinished jobs will still take by their estimates."""
    stored_bytes: int


def use(session: Session, workspace_id: UUID) -> Use:
    """What the workspace uses at this moment."""
    return _queue(session, workspace_id)._replace(stored_bytes=_stored(session, workspace_id))


def _queue_query() -> Select[Any]:
    """Everything except stored bytes, from the index of unfinished jobs, the leases, and the ledger."""
    workspace_id = bindparam("workspace_id", type_=Workspace.id.type)
    unfinished = (
        select(
            func.count().filter(Job.state == "queued").label("queued"),
            func.coalesce(func.sum(Job.estimated_seconds), 0).label("estimated"),
        )
        .where(Job.workspace_id == workspace_id, UNFINISHED)
        .subquery()
    )
    elapsed = sql_cast(extract("epoch", func.least(func.now() - Attempt.started_at, DAY)), Double)
    # Materialized, so that the index of leases is used: in one join the planner may prefer to read all jobs in order.
    leased = (
        select(Job.id, Job.attempt, Job.estimated_seconds)
        .where(Job.workspace_id == workspace_id, Job.lease_expires_at.is_not(None))
        .cte("leased")
        .prefix_with("MATERIALIZED")
    )
    running = (
        select(
            func.count().label("running"),
            func.coalesce(func.sum(elapsed), 0).label("elapsed"),
            func.coalesce(func.sum(func.least(func.coalesce(leased.c.estimated_seconds, 0), elapsed)), 0).label(
                "worked_off"
            ),
        )
        .join(leased, and_(Attempt.job_id == leased.c.id, Attempt.number == leased.c.attempt))
        .subquery()
    )
    spent = select(func.coalesce(func.sum(ComputeUse.seconds), 0)).where(
        ComputeUse.workspace_id == workspace_id, ComputeUse.hour > func.now() - DAY
    )
    own = select(Workspace.quotas).where(Workspace.id == workspace_id).scalar_subquery()
    columns = (own.label("own"), spent.scalar_subquery().label("spent"), unfinished, running)
    return select(*columns).select_from(unfinished.join(running, true()))


_QUEUE: Final = _queue_query()  # built once, because building it takes longer than running it


def _queue(session: Session, workspace_id: UUID) -> Use:
    found = session.execute(_QUEUE, {"workspace_id": workspace_id}).one()
    return Use(
        bounds=bounds(found.own or {}),
        queued_jobs=found.queued,
        running_jobs=found.running,
        compute_seconds=found.spent + found.elapsed,
        expected_seconds=found.estimated - found.worked_off,
        stored_bytes=0,
    )


def _stored(session: Session, workspace_id: UUID) -> int:
    return int(
        session.scalar(select(func.coalesce(func.sum(Blob.size_bytes), 0)).where(Blob.workspace_id == workspace_id))
        or 0
    )


def admit(session: Session, workspace_id: UUID, jobs: int, seconds: float) -> None:
    """Checks that the workspace may queue so many more jobs, which are estimated to take `seconds` in total; raises Exceeded."""
    now, until = _long_queues.get(workspace_id, (None, 0.0))
    if now is None or time.monotonic() > until or not _has_room(now, MANY * jobs, MANY * seconds, 0.5):
        now = _queue(session, workspace_id)
        if not _has_room(now, NEAR * jobs, NEAR * seconds):
            _one_at_a_time(session, workspace_id)
            now = _queue(session, workspace_id)
        _check("queued_jobs", now.bounds.queued_jobs, now.queued_jobs, jobs)
        _check("compute_seconds", now.bounds.compute_seconds, now.compute_seconds + now.expected_seconds, seconds)
        if now.queued_jobs > LONG:
            _long_queues[workspace_id] = now, time.monotonic() + COUNTED_SECONDS
    _check_some_room(session, workspace_id, now.bounds.stored_bytes)


# workspace → what it used, and until when that count is used
_long_queues: dict[UUID, tuple[Use | None, float]] = {}


# workspace → the bound below which it had room, and until when that is assumed
_had_room: dict[UUID, tuple[int, float]] = {}


def _check_some_room(session: Session, workspace_id: UUID, bound: int | None) -> None:
    """Raises Exceeded if nothing more may be stored: a run writes files, whose size isn't known yet.

    To add up many files takes longer than a submission should, so the result is used for ROOM_SECONDS.
    """
    if bound is None:
        return
    known, until = _had_room.get(workspace_id, (None, 0.0))
    if known == bound and time.monotonic() < until:
        return
    _check("stored_bytes", bound, _stored(session, workspace_id), 1)
    _had_room[workspace_id] = bound, time.monotonic() + ROOM_SECONDS


def check_room(session: Session, workspace_id: UUID, size: int) -> None:
    """Raises Exceeded if there is no room for so many more bytes."""
    now = use(session, workspace_id)
    _check("stored_bytes", now.bounds.stored_bytes, now.stored_bytes, size)


def check_stored(session: Session, workspace_id: UUID, size: int) -> None:
    """Raises Exceeded if the workspace's files, including a new one of `size` bytes, exceed the bound."""
    _one_at_a_time(session, workspace_id)
    now = use(session, workspace_id)
    _check("stored_bytes", now.bounds.stored_bytes, now.stored_bytes - size, size)


def spend(session: Session, workspace_id: UUID, work: ColumnElement[bool], started_at: Any) -> None:
    """Adds to the ledger the seconds from `started_at`, a column of the row that the condition `work` selects, until now."""
    seconds = extract("epoch", func.least(func.now() - started_at, DAY))
    ended = select(literal(workspace_id), func.date_trunc("hour", func.now()), seconds).where(work)
    row = insert(ComputeUse).from_select(["workspace_id", "hour", "seconds"], ended)
    session.execute(
        row.on_conflict_do_update(
            index_elements=[ComputeUse.workspace_id, ComputeUse.hour],
            set_={"seconds": ComputeUse.seconds + row.excluded.seconds},
        )
    )


def running_bound(session: Session, workspace_id: UUID) -> int | None:
    """How many jobs of the workspace may run at once."""
    own = session.scalars(select(Workspace.quotas).where(Workspace.id == workspace_id)).one()
    return bounds(own).running_jobs


def may_run_another(session: Session, workspace_id: UUID, bound: int) -> bool:
    """Whether fewer jobs of the workspace run than the bound. Locks out other claims of its jobs until the transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"running {workspace_id}", 0))))
    leased = select(func.count()).where(Job.workspace_id == workspace_id, Job.lease_expires_at.is_not(None))
    return session.scalars(leased).one() < bound


def full() -> Select[UUID]:
    """A subquery: the workspaces that run as many jobs as they may."""
    own = case(
        (Workspace.quotas.has_key("running_jobs"), sql_cast(Workspace.quotas["running_jobs"].astext, Integer)),
        else_=settings().quota_running_jobs,
    )
    # Counted from the leases, of which there are no more than workers' slots, and not from the queue.
    leased = select(Job.workspace_id, func.count().label("running")).where(Job.lease_expires_at.is_not(None))
    running = leased.group_by(Job.workspace_id).subquery()
    return select(Workspace.id).join(running, running.c.workspace_id == Workspace.id).where(running.c.running >= own)


def forget(session: Session) -> None:
    """Removes old entries of the ledger."""
    session.execute(delete(ComputeUse).where(ComputeUse.hour < func.now() - _KEPT))


def _one_at_a_time(session: Session, workspace_id: UUID) -> None:
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {workspace_id}", 0))))


def _has_room(now: Use, jobs: int, seconds: float, share: float = 1.0) -> bool:
    """Whether less than `share` of the bounds would be used with so many more jobs and seconds."""
    queue, compute = now.bounds.queued_jobs, now.bounds.compute_seconds
    return (queue is None or now.queued_jobs + jobs < share * queue) and (
        compute is None or now.compute_seconds + now.expected_seconds + seconds < share * compute
    )


def _check(name: Name, bound: int | None, used: float, asked: float) -> None:
    if bound is not None and used + asked > bound:
        raise Exceeded(name, bound, used, asked)
