"""Several workers on one queue, and what happens when one of them is lost, stopped or told to end."""

from __future__ import annotations

import signal
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from service.core.database import transaction
from service.core.tables import Leadership
from service.workers.tables import Worker
from tests.support.audit import violations
from tests.support.jobs import attempts_of, bits_of, job_of, spec, submit, undisturbed, wait_for, wait_for_iteration
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess, Workers, is_gone, trainer_of

pytestmark = pytest.mark.processes

LONG = 1_200
"""Iterations: longer than a lease."""


class Pair:
    """Two living workers."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.members: list[WorkerProcess] = []
        self.mend()

    @property
    def folder(self) -> Path:
        """Where attempts keep their files."""
        return self.workers.home / "attempts"

    def holder(self, job_id: UUID) -> WorkerProcess:
        return self.workers.holder(job_id)

    def amid_a_job(self) -> tuple[UUID, WorkerProcess, int]:
        """A long job under way, the worker that has it, and its trainer."""
        job_id = submit(spec(LONG, checkpoint_every=100))
        wait_for_iteration(job_id, 12)
        trainer = trainer_of(job_id)
        assert trainer is not None
        return job_id, self.workers.holder(job_id), trainer

    def mend(self) -> None:
        """Starts others in the place of those that ended."""
        alive = [member for member in self.members if member.is_alive]
        self.members = [*alive, *(self.workers.start() for _ in range(2 - len(alive)))]
        for member in self.members:
            member.wait_until_ready()


@pytest.fixture(scope="module")
def one_pair(stubbed_workers: Workers) -> Pair:
    return Pair(stubbed_workers)


@pytest.fixture
def pair(one_pair: Pair) -> Pair:
    one_pair.mend()
    return one_pair


@pytest.fixture(scope="module")
def expected(one_pair: Pair) -> str:
    return bits_of(undisturbed(spec(LONG, checkpoint_every=100)))


def test_two_workers_share_the_queue_and_never_a_job(pair: Pair) -> None:
    ids = [submit(spec(8, seed=seed)) for seed in range(12)]
    for job_id in ids:
        wait_for(job_id, "succeeded")
    attempts = [attempts_of(job_id) for job_id in ids]
    assert [len(own) for own in attempts] == [1] * 12
    assert len({own[0].worker_id for own in attempts}) == 2


def test_a_killed_worker_takes_its_trainer_along_and_another_goes_on(pair: Pair, expected: str) -> None:
    job_id, holder, trainer = pair.amid_a_job()
    holder.kill()
    wait_until(lambda: is_gone(trainer))
    wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    assert [one.reason for one in attempts_of(job_id)] == ["lost_worker", "succeeded"]


def test_a_stopped_worker_loses_trainer_and_job_and_drops_it_when_it_goes_on(pair: Pair, expected: str) -> None:
    job_id, holder, trainer = pair.amid_a_job()
    holder.signal(signal.SIGSTOP)
    wait_until(lambda: job_of(job_id).attempt == 2)
    assert is_gone(trainer), "its lease was another's while it went on"
    holder.signal(signal.SIGCONT)
    wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    assert [one.reason for one in attempts_of(job_id)] == ["lost_worker", "succeeded"]
    files = pair.folder / str(attempts_of(job_id)[0].worker_id) / f"{job_id}-1"
    wait_until(lambda: not files.exists())
    with pair.workers.only(holder):
        wait_for(submit(spec(10)), "succeeded")
    assert [one.reason for one in attempts_of(job_id)] == ["lost_worker", "succeeded"]
    with transaction() as session:
        assert violations(session) == []


def test_a_worker_told_to_end_checkpoints_and_requeues_at_once(pair: Pair, expected: str) -> None:
    job_id = submit(spec(LONG, checkpoint_every=1_000_000))
    wait_for_iteration(job_id, 12)
    holder = pair.holder(job_id)
    holder.signal(signal.SIGTERM)
    assert holder.wait() == 0
    with transaction() as session:
        assert session.scalar(select(Worker.id).where(Worker.pid == holder.pid)) is None
    wait_for(job_id, "succeeded")
    first, second = attempts_of(job_id)
    assert (first.reason, second.reason) == ("worker_shutdown", "succeeded")
    assert first.ended_at is not None
    assert first.ended_at <= second.started_at
    assert not (pair.folder / str(first.worker_id)).exists()


def test_the_lead_passes_on_when_its_holder_ends(pair: Pair) -> None:
    def leader() -> UUID | None:
        with transaction() as session:
            return session.scalar(select(Leadership.holder).where(Leadership.expires_at > func.now()))

    first = wait_until(leader)
    with transaction() as session:
        pid = session.scalars(select(Worker.pid).where(Worker.id == first)).one()
    lost = next(member for member in pair.members if member.pid == pid)
    lost.kill()
    wait_until(lambda: leader() not in (first, None))
