"""How an attempt ends, and what then happens to its job. The caller has locked the job's row.

Crashes are retried from the newest checkpoint, with back-off, until `runtime.max_attempts` attempts have crashed since
that checkpoint was committed. A run that failed by its own error would fail again, so it isn't retried.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from service.core import blobs, outbox, quotas
from service.jobs.claims import asked_runtime, newest_checkpoint
from service.jobs.states import become
from service.jobs.tables import Attempt, Job
from service.jobs.transitions import State

Crash = Literal["killed", "out_of_memory", "native_crash", "stalled", "lost_worker"]
CRASHES: Final[tuple[Crash, ...]] = ("killed", "out_of_memory", "native_crash", "stalled", "lost_worker")

_REQUESTED: Final[dict[State, State]] = {"pausing": "paused", "cancelling": "cancelled"}
LONGEST_BACK_OFF = timedelta(minutes=1)


def succeeded(
    session: Session,
    job: Job,
    blob_id: UUID,
    parameters: int,
    *,
    iteration: int,
    reason: str | None = None,
    detail: str | None = None,
) -> None:
    """The trainer has finished after `iteration` meta-iterations; the blob is the learned initialization. `reason` and `detail`
    say why it finished early, if it did."""
    _end(session, job, "succeeded", None)
    before, job.initialization_blob_id = job.initialization_blob_id, blob_id
    blobs.give(session, blob_id, job.workspace_id)
    if before is not None and before != blob_id:  # the initialization of the shorter run that this one extends
        session.flush()
        blobs.remove(session, [before])
    job.parameters = parameters
    job.iteration = iteration
    become(session, job, "succeeded", reason=reason, detail=detail)


def failed(session: Session, job: Job, reason: str, detail: str) -> None:
    """The run failed by its own error."""
    _end(session, job, reason, detail)
    become(session, job, "failed", reason=reason, detail=detail)


def stopped(session: Session, job: Job) -> None:
    """The trainer was stopped: because a user pauses or cancels the job, or because its worker shuts down."""
    if _as_requested(session, job, None, None):
        return
    detail = "The worker that ran it was shut down; another goes on from the newest checkpoint."
    _end(session, job, "worker_shutdown", detail)
    become(session, job, "queued", reason="worker_shutdown", detail=detail)
    outbox.put(session, "wake")


def lapsed(session: Session, job: Job) -> None:
    """The lease has lapsed: the worker that ran the job was lost."""
    crashed(session, job, "lost_worker", "The worker that ran it was lost")


def crashed(session: Session, job: Job, reason: Crash, detail: str) -> None:
    """The attempt crashed. `detail` says what happened, as a sentence without its full stop."""
    if _as_requested(session, job, reason, f"{detail}."):
        return
    _end(session, job, reason, f"{detail}.")
    checkpoint = newest_checkpoint(session, job.id)
    crashes = _crashes_since(session, job.id, checkpoint.attempt if checkpoint else 0)
    allowed = asked_runtime(job).max_attempts
    if crashes >= allowed:
        remedy = _REMEDIES[reason]
        become(
            session, job, "failed", reason=reason,
            detail=f"{detail}; all {allowed} attempts (runtime.max_attempts) crashed without a new checkpoint. {remedy}",
        )  # fmt: skip
        return
    delay = back_off(crashes)
    source = f"the checkpoint at iteration {checkpoint.step}" if checkpoint else "the start"
    job.queued_at = func.now() + delay
    become(
        session, job, "queued", reason=reason,
        detail=f"{detail}; it is tried again from {source} (crash {crashes} of at most {allowed}).",
    )  # fmt: skip
    if not delay:
        outbox.put(session, "wake")


def back_off(crashes: int) -> timedelta:
    """How long to wait before the next attempt: nothing after the first crash, then 1, 2, 4, … seconds."""
    if crashes <= 1:
        return timedelta(0)
    return min(timedelta(seconds=2.0 ** min(crashes - 2, 30)), LONGEST_BACK_OFF)


_REMEDIES: Final[dict[Crash, str]] = {
    "killed": "Find out what kills processes on the workers' machines, then submit the job again.",
    "out_of_memory": (
        "Lower meta.tasks_per_batch, family.shots or model.hidden, set method.adjoint.checkpoints, "
        "or run workers with more memory; then submit the job again."
    ),
    "native_crash": (
        "A native library crashed: try runtime.device cpu or another solver, and report it with the worker's log."
    ),
    "stalled": (
        "Loosen solver.rtol or shorten trajectory.length so that an iteration takes less time, "
        "or raise AMAML_STALL_SECONDS on the workers."
    ),
    "lost_worker": (
        "Read in the workers' logs why they end, and check whether their disks are full; then submit the job again."
    ),
}


def _as_requested(session: Session, job: Job, reason: str | None, detail: str | None) -> bool:
    """Ends a job that is pausing or cancelling as the user requested, however its trainer ended; `reason` None: as requested."""
    for requested, target in _REQUESTED.items():
        if job.state == requested:
            _end(session, job, reason or target, detail)
            become(session, job, target)
            return True
    return False


def _end(session: Session, job: Job, reason: str, detail: str | None) -> None:
    if newest_checkpoint(session, job.id) is None:
        # The next attempt starts without a checkpoint, so it may run on any device that the spec allows.
        job.device, job.gpu = asked_runtime(job).device, None
    attempt = and_(Attempt.job_id == job.id, Attempt.number == job.attempt)
    session.execute(update(Attempt).where(attempt).values(ended_at=func.now(), reason=reason, detail=detail))
    quotas.spend(session, job.workspace_id, attempt, Attempt.started_at)


def _crashes_since(session: Session, job_id: UUID, attempt: int) -> int:
    """How many attempts from this one on have crashed, after the last that succeeded, if one did."""
    success = select(func.coalesce(func.max(Attempt.number), 0)).where(
        Attempt.job_id == job_id, Attempt.reason == "succeeded"
    )
    crashes = select(func.count()).where(
        Attempt.job_id == job_id,
        Attempt.number >= attempt,
        Attempt.number > success.scalar_subquery(),
        Attempt.reason.in_(CRASHES),
    )
    return session.scalars(crashes).one()
