"""Studies with real workers: never more jobs at once than the study may have, whatever happens to the workers."""

from __future__ import annotations

import signal
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, text

from service.store import studies
from service.store.database import transaction
from service.store.studies import NewCell
from service.store.tables import Attempt, Evaluation, Job, Study, Workspace
from tests.faults.audit import violations
from tests.worker.conftest import WorkerProcess, Workers, metrics_of, spec, wait_until
from worker import failpoint

CONCURRENCY = 2


@pytest.fixture(scope="module")
def pair(workers: Workers) -> list[WorkerProcess]:
    """Two workers with two slots each: room for twice as many jobs as a study may have at once."""
    members = [workers.start(AMAML_WORKER_SLOTS="2") for _ in range(2)]
    for member in members:
        member.wait_until_ready()
    return members


def submit(cells: int, iterations: int = 20, **changes: Any) -> UUID:
    """A study of so many seeds."""
    specs = [spec(iterations, seed=seed, **changes) for seed in range(cells)]
    with transaction() as session:
        workspace = session.scalars(select(Workspace.id)).first()
        workspace = workspace or session.scalars(insert(Workspace).values(name="default").returning(Workspace.id)).one()
        grid = {"/runtime/seed": list(range(cells))}
        new = [NewCell({"/runtime/seed": seed}, one) for seed, one in enumerate(specs)]
        return studies.submit(session, workspace, "a study", {}, grid, CONCURRENCY, new)


def study_of(study_id: UUID) -> Study:
    with transaction() as session:
        return session.get_one(Study, study_id)


def jobs_of(study_id: UUID) -> list[Job]:
    with transaction() as session:
        return list(session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.cell_number)))


def wait_for_end(study_id: UUID, state: str = "finished") -> None:
    wait_until(lambda: study_of(study_id).state in ("finished", "cancelled"), 100)
    assert study_of(study_id).state == state
    assert study_of(study_id).ended_at is not None
    with transaction() as session:
        assert violations(session) == []


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
    study_id = submit(10)
    wait_for_end(study_id)
    jobs = jobs_of(study_id)
    assert [job.state for job in jobs] == ["succeeded"] * 10
    assert most_at_once(study_id) == CONCURRENCY
    starts = [job.started_at for job in jobs if job.started_at is not None]
    assert all(one < next_but_one for one, next_but_one in zip(starts, starts[CONCURRENCY:], strict=False))
    ends = sorted(job.ended_at for job in jobs if job.ended_at is not None)
    # Let in by the end of another, not by the reconciler's next round.
    waited = [(start - end).total_seconds() for start, end in zip(sorted(starts)[CONCURRENCY:], ends, strict=False)]
    assert sorted(waited)[len(waited) // 2] < 0.5


def test_what_a_job_leaves_for_the_report(pair: list[WorkerProcess]) -> None:
    study_id = submit(1, 30, evaluation={"every": 10, "tasks": 2, "epochs": 20})
    wait_for_end(study_id)
    (job,) = jobs_of(study_id)
    with transaction() as session:
        found = list(session.scalars(select(Evaluation).where(Evaluation.job_id == job.id).order_by(Evaluation.step)))
        (result,) = studies.results(session, study_id)
    assert [(one.step, one.metric, one.higher_is_better) for one in found] == [
        (step, "nrmse", False) for step in (10, 20, 30)
    ]
    metrics = metrics_of(job.id)
    for one in found:
        assert {name: len(scores) for name, scores in one.scores.items()}.items() >= {
            "flow": 2,
            "tuned": 2,
            "random": 2,
        }.items()
        for name in ("flow", "tuned", "random"):
            assert sum(one.scores[name]) / 2 == pytest.approx(metrics[f"nrmse_{name}"][one.step])
        assert one.curve["epochs"] == [0, 10, 20]
        assert one.curve["mean"][-1] == pytest.approx(metrics["nrmse_tuned"][one.step])
        assert one.curve["error"][-1] == pytest.approx(metrics["nrmse_tuned_error"][one.step])
    assert [one.along_flow is None for one in found] == [True, True, False]
    assert (found[-1].along_flow or {})["times"][-1] == 1.0
    memory = list(metrics["memory_bytes"].values())
    assert 0 <= memory[0] <= memory[-1] < 200e6  # of the run alone: the process itself is larger
    assert memory == sorted(memory)
    assert result.evaluation is not None
    assert result.evaluation.step == 30
    assert result.seconds == pytest.approx(median(metrics["seconds"].values()))
    assert job.metrics["memory_bytes"] == memory[-1]


def test_a_failed_job_does_not_stop_the_others(pair: list[WorkerProcess]) -> None:
    study_id = submit(4, 50, meta={"optimizer": {"kind": "sgd", "lr": 100.0}})
    wait_for_end(study_id)
    assert {(job.state, job.status_reason) for job in jobs_of(study_id)} == {("failed", "solver_failed")}


def test_a_cancelled_study_ends_soon(pair: list[WorkerProcess]) -> None:
    study_id = submit(6, 100_000)
    wait_until(lambda: sum(job.state == "running" for job in jobs_of(study_id)) == CONCURRENCY)
    with transaction() as session:
        assert studies.cancel(session, study_of(study_id).workspace_id, study_id)
    wait_until(lambda: study_of(study_id).state == "cancelled", 8)
    wait_for_end(study_id, "cancelled")
    assert {job.state for job in jobs_of(study_id)} == {"cancelled"}
    assert sum(job.attempt for job in jobs_of(study_id)) == CONCURRENCY


def test_a_study_survives_its_worker(pair: list[WorkerProcess], workers: Workers) -> None:
    study_id = submit(8, 60)
    holders = [member for member in pair if member.is_alive]

    def victim() -> WorkerProcess | None:
        running = [job.id for job in jobs_of(study_id) if job.state == "running" and job.iteration >= 5]
        return next((member for member in holders for job_id in running if member.trainer_of(job_id)), None)

    lost = wait_until(victim)
    assert lost is not None
    lost.signal(signal.SIGKILL)
    lost.wait()
    wait_for_end(study_id)
    assert [job.state for job in jobs_of(study_id)] == ["succeeded"] * 8
    assert max(job.attempt for job in jobs_of(study_id)) == 2
    assert most_at_once(study_id) == CONCURRENCY


@pytest.mark.slow
@pytest.mark.parametrize("place", ["study.before_advance", "study.before_commit"])
def test_a_worker_killed_before_the_next_turn_holds_nobody_up(workers: Workers, place: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    armed = workers.start(**{failpoint.VARIABLE: f"{place}=kill", failpoint.MARK: str(mark)})
    armed.wait_until_ready()
    study_id = submit(12)
    wait_for_end(study_id)
    if mark.exists():
        assert armed.wait() == -signal.SIGKILL
    assert [job.state for job in jobs_of(study_id)] == ["succeeded"] * 12
    assert mark.exists()
    assert most_at_once(study_id) == CONCURRENCY


def test_a_claim_does_not_look_at_what_is_held(shared_store: str) -> None:
    study_id = submit(500)
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
    assert counted >= 496
