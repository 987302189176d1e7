"""What a worker does beside jobs: leading, repairing, telling of life, sweeping its folder, keeping trainers."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update

from service.core import leadership
from service.core.database import transaction
from service.core.tables import Blob, IdempotencyKey, OutboxMessage, Workspace
from service.jobs.tables import Job
from service.workers import store as workers
from service.workers.tables import Worker
from tests.support.jobs import job_of, lapse, spec, submit, taken
from worker.jobs.prestarted_trainers import PrestartedTrainers
from worker.maintenance.folder import WorkerFolder
from worker.maintenance.reconciler import ROLE, Reconciler, tidy
from worker.processes import crashes
from worker.processes.protocol import EXIT_NOT_TRUSTED, EXIT_OUT_OF_MEMORY

SECONDS = timedelta(seconds=30)


@pytest.mark.usefixtures("store")
def test_one_leads_until_its_lease_lapses_or_is_given_back() -> None:
    first, second = uuid4(), uuid4()

    def lead(holder: object) -> bool:
        with transaction() as session:
            return leadership.lead(session, "duty", holder, SECONDS)  # type: ignore[arg-type]

    assert [lead(first), lead(second), lead(first)] == [True, False, True]
    with transaction() as session:
        leadership.give_back(session, "duty", second)
    assert not lead(second), "nobody gives back another's lease"
    with transaction() as session:
        leadership.give_back(session, "duty", first)
    assert [lead(second), lead(first)] == [True, False]
    with transaction() as session:
        session.execute(update(leadership.Leadership).values(expires_at=func.now() - timedelta(seconds=1)))
    assert lead(first)


@pytest.mark.usefixtures("store")
def test_only_the_leader_repairs() -> None:
    job_id = submit(spec(), wake=False)
    taken()
    lapse(job_id)
    leads = uuid4()
    leader, other = Reconciler(leads), Reconciler(uuid4())
    with transaction() as session:
        leadership.lead(session, ROLE, leads, SECONDS)
    other.round()
    assert job_of(job_id).state == "running"
    leader.round()
    assert (job_of(job_id).state, job_of(job_id).status_reason) == ("queued", "lost_worker")


@pytest.mark.usefixtures("store")
def test_a_job_that_waits_too_long_gets_another_wake_up_if_some_worker_could_run_it() -> None:
    job_id = submit(spec(device="cuda"), wake=False)
    with transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(queued_at=func.now() - timedelta(minutes=1)))
    reconciler = Reconciler(uuid4())

    def wake_ups() -> int:
        reconciler.round()
        with transaction() as session:
            return session.scalars(select(func.count()).select_from(OutboxMessage)).one()

    assert wake_ups() == 0
    assert job_of(job_id).status_reason == "no_cuda_worker"
    with transaction() as session:
        workers.seen(session, uuid4(), "there", 1, ["cpu", "cuda"])
    assert wake_ups() == 1


@pytest.mark.usefixtures("store")
def test_what_has_served_its_time_is_removed() -> None:
    long_ago = func.now() - timedelta(days=2)
    with transaction() as session:
        workspace = Workspace(name="default")
        session.add(workspace)
        session.flush()
        for key, when in (("old", long_ago), ("new", func.now())):
            session.add(
                IdempotencyKey(workspace_id=workspace.id, key=key, request_sha256="", response={}, created_at=when)
            )
            session.add(Worker(id=uuid4(), host=key, pid=1, devices=["cpu"], seen_at=when))
            session.add(Blob(sha256=key, created_at=when))
    tidy()
    with transaction() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]
        assert session.scalars(select(Worker.host)).all() == ["new"]
        assert session.scalars(select(Blob.sha256)).all() == ["new"]


@pytest.mark.parametrize(
    ("status", "crash"),
    [
        (-signal.SIGKILL, "killed"),
        (-signal.SIGTERM, "killed"),
        (-signal.SIGSEGV, "native_crash"),
        (-signal.SIGABRT, "native_crash"),
        (3, "native_crash"),
        (0, "native_crash"),
        (EXIT_OUT_OF_MEMORY, "out_of_memory"),
        (EXIT_NOT_TRUSTED, "lost_worker"),
    ],
)
def test_crashes_are_told_apart(status: int, crash: str) -> None:
    assert crashes.classify(status, crashes.oom_kills())[0] == crash


def test_a_kill_is_for_want_of_memory_if_the_kernel_counts_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "memory.events"
    monkeypatch.setattr(crashes, "CGROUP_EVENTS", counts)
    assert crashes.oom_kills() == 0
    counts.write_text("low 0\noom 1\noom_kill 4\n")
    before = crashes.oom_kills()
    assert crashes.classify(-signal.SIGKILL, before)[0] == "killed"
    counts.write_text("low 0\noom 2\noom_kill 5\n")
    assert crashes.classify(-signal.SIGKILL, before)[0] == "out_of_memory"


def test_a_worker_sweeps_the_folders_of_dead_ones_and_leaves_living_ones_alone(tmp_path: Path) -> None:
    living, new = WorkerFolder(tmp_path, uuid4()), WorkerFolder(tmp_path, uuid4())
    living.open()
    foreign = tmp_path / "no folder"
    foreign.write_bytes(b"of somebody else")
    living.attempt("job-1").mkdir()
    living.attempt("job-1").joinpath("checkpoint").write_bytes(b"bytes")
    abandoned = tmp_path / str(uuid4()) / "job-2"
    abandoned.mkdir(parents=True)
    new.open()
    assert sorted(tmp_path.iterdir()) == sorted([living.path, new.path, foreign])
    assert (living.path / "job-1" / "checkpoint").read_bytes() == b"bytes"
    living.close()
    new.close()
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_spare_that_dies_is_replaced_and_closing_ends_them_all() -> None:
    trainers = PrestartedTrainers(1)
    told: list[str] = []
    trainers.start(lambda: told.append("ready"))
    first = trainers.take()
    assert first is not None
    assert told == ["ready"]
    trainers.give_back(first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = trainers.take()
    assert second is not None
    assert second.pid != first.pid
    assert second.is_alive
    trainers.give_back(second)
    trainers.close()
    assert trainers.take() is None
    assert not second.is_alive
