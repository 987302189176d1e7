"""The ends of attempts, and what becomes of their jobs, on a real store and without processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from service.core import blobs
from service.core.database import transaction
from service.core.tables import OutboxMessage
from service.jobs import attempts, progress
from service.jobs.tables import Attempt, Job
from tests.support.jobs import ask, attempts_of, fenced, job_of, lapse, spec, submit, take, taken
from worker.maintenance.reconciler import end_one_lapsed_lease

pytestmark = pytest.mark.usefixtures("store")


def test_a_job_is_retried_with_back_off_until_its_attempts_are_used_up() -> None:
    job_id = submit(spec(max_attempts=3))
    for expected in (0.0, 1.0):
        fenced(taken(), lambda session, job: attempts.crashed(session, job, "killed", "It was killed"))
        with transaction() as session:
            ended_at = session.scalars(select(func.max(Attempt.ended_at))).one()
            waits = session.scalars(select(Job.queued_at)).one() - ended_at
            session.execute(update(Job).values(queued_at=func.now()))
        assert waits == timedelta(seconds=expected)
        assert job_of(job_id).state == "queued"
    fenced(taken(), lambda session, job: attempts.crashed(session, job, "out_of_memory", "No memory was left"))
    job = job_of(job_id)
    assert (job.state, job.status_reason) == ("failed", "out_of_memory")
    assert "runtime.max_attempts" in (job.status_detail or "")
    assert "meta.tasks_per_batch" in (job.status_detail or "")


def test_a_committed_checkpoint_starts_the_count_of_crashes_anew() -> None:
    job_id = submit(spec(max_attempts=2))
    for step in (10, 20, 30):
        claim = taken()
        blob = blobs.write([b"checkpoint"]).blob_id
        fenced(claim, lambda session, job, at=step, id_=blob: progress.add_checkpoint(session, job, at, id_))
        fenced(claim, lambda session, job: attempts.crashed(session, job, "killed", "It was killed"))
        assert job_of(job_id).state == "queued"
    fenced(taken(), lambda session, job: attempts.crashed(session, job, "killed", "It was killed"))
    assert job_of(job_id).state == "failed"


def test_a_shutdown_counts_for_nothing_and_queues_the_job_at_once() -> None:
    job_id = submit(spec(max_attempts=1))
    for _ in range(3):
        fenced(taken(), attempts.stopped)
    job = job_of(job_id)
    assert (job.state, job.status_reason) == ("queued", "worker_shutdown")
    with transaction() as session:
        assert session.scalars(select(func.count()).select_from(OutboxMessage)).one() == 4


@pytest.mark.parametrize(("asked", "ends"), [("pause", "paused"), ("cancel", "cancelled")])
@pytest.mark.parametrize("by", ["stop", "crash", "lapse"])
def test_a_job_that_was_paused_or_cancelled_becomes_so_however_its_attempt_ends(asked: Any, ends: str, by: str) -> None:
    job_id = submit(spec())
    claim = taken()
    ask(job_id, asked)
    if by == "stop":
        fenced(claim, attempts.stopped)
    elif by == "crash":
        fenced(claim, lambda session, job: attempts.crashed(session, job, "killed", "It was killed"))
    else:
        lapse(job_id)
        assert end_one_lapsed_lease("job")
    assert job_of(job_id).state == ends
    assert attempts_of(job_id)[0].ended_at is not None


def test_a_run_that_failed_by_itself_is_not_retried() -> None:
    job_id = submit(spec())
    fenced(taken(), lambda session, job: attempts.failed(session, job, "diverged", "It diverged."))
    assert job_of(job_id).state == "failed"
    assert take() is None


def test_a_job_that_ended_early_says_after_how_many_meta_iterations_and_why() -> None:
    job_id = submit(spec())
    fenced(
        taken(),
        lambda session, job: attempts.succeeded(
            session,
            job,
            blobs.write([b"x"]).blob_id,
            25,
            iteration=2,
            reason="target_reached",
            detail="It came to 0.1.",
        ),
    )
    job = job_of(job_id)
    assert (job.state, job.iteration) == ("succeeded", 2)
    assert job.iterations > 2
    assert (job.status_reason, job.status_detail) == ("target_reached", "It came to 0.1.")


def test_attempts_say_why_they_ended() -> None:
    job_id = submit(spec())
    fenced(taken(), lambda session, job: attempts.crashed(session, job, "stalled", "It stood still"))
    fenced(taken(), lambda session, job: attempts.succeeded(session, job, blobs.write([b"x"]).blob_id, 25, iteration=9))
    assert [(one.number, one.reason) for one in attempts_of(job_id)] == [(1, "stalled"), (2, "succeeded")]
    with transaction() as session:
        assert session.scalars(select(func.count()).select_from(Attempt).where(Attempt.ended_at.is_(None))).one() == 0
