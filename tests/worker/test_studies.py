"""Studies with real workers: never more jobs at once than the study may have, whatever happens to the workers."""

from __future__ import annotations

import signal
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text

from service.core import leadership
from service.core.database import transaction
from service.jobs.tables import Attempt, Job
from service.studies import store as studies
from tests.support.studies import jobs_of, study_of, submit_study, wait_for_end
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess, Workers
from worker.maintenance.reconciler import ROLE

pytestmark = pytest.mark.processes

CONCURRENCY = 2
"""Of a study, unless a test says otherwise."""


@pytest.fixture(scope="module")
def pair(stubbed_workers: Workers) -> list[WorkerProcess]:
    """Two workers with two slots each: room for twice as many jobs as a study may have at once."""
    members = [stubbed_workers.start(AMAML_WORKER_SLOTS="2") for _ in range(2)]
    for member in members:
        member.wait_until_ready()
    return members


def most_at_once(study_id: UUID) -> int:
    """How many attempts of the study's jobs ever overlapped, by Postgres' times."""
    with transaction() as session:
        spans = session.execute(
            select(Attempt.started_at, Attempt.ended_at).join(Job).where(Job.study_id == study_id)
        ).all()
    # An end comes before a start of the same moment: a span's last instant isn't its own.
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans if end is not None])
    running, most = 0, 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def test_a_study_runs_as_many_jobs_as_it_may_and_no_more(pair: list[WorkerProcess]) -> None:
    study_id = submit_study(10)
    wait_for_end(study_id)
    jobs = jobs_of(study_id)
    assert [job.state for job in jobs] == ["succeeded"] * 10
    assert most_at_once(study_id) == CONCURRENCY
    starts = [job.started_at for job in jobs if job.started_at is not None]
    assert all(one < next_but_one for one, next_but_one in zip(starts, starts[CONCURRENCY:], strict=False))


def test_a_cancelled_study_ends_soon(pair: list[WorkerProcess]) -> None:
    study_id = submit_study(6, 100_000)
    wait_until(lambda: sum(job.state == "running" for job in jobs_of(study_id)) == CONCURRENCY)
    with transaction() as session:
        assert studies.cancel(session, study_of(study_id).workspace_id, study_id)
    wait_until(lambda: study_of(study_id).state == "cancelled")
    wait_for_end(study_id, "cancelled")
    assert {job.state for job in jobs_of(study_id)} == {"cancelled"}
    assert sum(job.attempt for job in jobs_of(study_id)) == CONCURRENCY


def test_a_study_survives_its_worker(pair: list[WorkerProcess], stubbed_workers: Workers) -> None:
    study_id = submit_study(8, 300)

    def one_that_runs() -> Job | None:
        return next((job for job in jobs_of(study_id) if job.state == "running" and job.iteration >= 5), None)

    running = wait_until(one_that_runs)
    assert running is not None
    stubbed_workers.holder(running.id).kill()
    wait_for_end(study_id)
    assert [job.state for job in jobs_of(study_id)] == ["succeeded"] * 8
    assert max(job.attempt for job in jobs_of(study_id)) >= 2
    assert most_at_once(study_id) == CONCURRENCY


@pytest.mark.parametrize("place", ["study.before_advance", "study.before_commit"])
def test_a_worker_killed_before_the_next_turn_holds_nobody_up(stubbed_workers: Workers, place: str) -> None:
    armed = stubbed_workers.start_ready(AMAML_WORKER_SLOTS="2")
    armed.arm(f"{place}=kill")
    with stubbed_workers.only(armed):
        study_id = submit_study(6)
        assert armed.wait() == -signal.SIGKILL
    wait_for_end(study_id)
    assert [job.state for job in jobs_of(study_id)] == ["succeeded"] * 6
    assert most_at_once(study_id) == CONCURRENCY


def test_the_end_of_one_job_lets_the_next_in_without_the_reconciler(stubbed_workers: Workers) -> None:
    """Another process leads the repairs, and does none."""
    stubbed_workers.stop()
    with transaction() as session:
        assert leadership.lead(session, ROLE, uuid4(), timedelta(minutes=10))
    stubbed_workers.start(AMAML_WORKER_SLOTS="2")
    study_id = submit_study(6)
    wait_for_end(study_id)
    assert [job.state for job in jobs_of(study_id)] == ["succeeded"] * 6


def test_a_claim_does_not_look_at_what_is_held(stubbed_workers: Workers) -> None:
    stubbed_workers.stop()  # however many jobs they would run until the study is cancelled
    study_id = submit_study(500)
    query = text(
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT id FROM jobs WHERE state = 'queued' AND NOT held AND queued_at <= now() "
        "ORDER BY queued_at, id LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    with transaction() as session:
        session.execute(text("ANALYZE jobs"))
        plan = session.execute(query).scalar_one()[0]["Plan"]
        assert studies.cancel(session, study_of(study_id).workspace_id, study_id)
        counted = session.scalars(select(func.count()).where(Job.study_id == study_id, Job.state == "cancelled")).one()
    scanned = []
    while plan:
        scanned.append((plan.get("Index Name"), plan["Actual Rows"], plan.get("Rows Removed by Filter", 0)))
        plan = plan.get("Plans", [None])[0]
    assert scanned[-1][0] == "ix_jobs_queue"
    assert all(rows <= CONCURRENCY and removed == 0 for _, rows, removed in scanned)
    assert counted == 500
