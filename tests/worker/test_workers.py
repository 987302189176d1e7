"""Several workers on one queue, and what happens when one of them is lost, stopped or told to end."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from service.store.database import transaction
from service.store.tables import Leadership, Worker
from tests.worker.conftest import (
    LEASE_SECONDS,
    WorkerProcess,
    Workers,
    attempts_of,
    is_gone,
    job_of,
    result_of,
    spec,
    submit,
    wait_for,
    wait_for_iteration,
    wait_until,
)

SLACK = 8.0
"""Seconds that a loaded machine may add to what takes a lease."""
LONG = 500
"""Iterations: longer than a lease."""


class Pair:
    """Two living workers."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.members: list[WorkerProcess] = []
        self.mend()

    @property
    def folder(self) -> Path:
        """Where attempts keep their files."""
        return self._workers.home / "attempts"

    def holder(self, job_id: UUID) -> WorkerProcess:
        return next(member for member in self.members if member.trainer_of(job_id) is not None)

    def mend(self) -> None:
        """Starts others in the place of those that ended."""
        alive = [member for member in self.members if member.is_alive]
        self.members = [*alive, *(self._workers.start() for _ in range(2 - len(alive)))]
        for member in self.members:
            member.wait_until_ready()


@pytest.fixture(scope="module")
def one_pair(workers: Workers) -> Pair:
    return Pair(workers)


@pytest.fixture
def pair(one_pair: Pair) -> Pair:
    one_pair.mend()
    return one_pair


@pytest.fixture(scope="module")
def undisturbed(one_pair: Pair) -> str:
    job_id = submit(spec(LONG))
    wait_for(job_id, "succeeded")
    return result_of(job_id)["tensors_sha256"]


def test_two_workers_share_the_queue_and_never_a_job(pair: Pair) -> None:
    ids = [submit(spec(8, seed=seed)) for seed in range(12)]
    for job_id in ids:
        wait_for(job_id, "succeeded")
    attempts = [attempts_of(job_id) for job_id in ids]
    assert [len(own) for own in attempts] == [1] * 12
    assert len({own[0].worker_id for own in attempts}) == 2


def test_a_killed_worker_takes_its_trainer_along_and_another_goes_on(pair: Pair, undisturbed: str) -> None:
    job_id = submit(spec(LONG))
    wait_for_iteration(job_id, 12)
    holder = pair.holder(job_id)
    trainer = holder.trainer_of(job_id)
    assert trainer is not None
    holder.signal(signal.SIGKILL)
    killed = time.monotonic()
    holder.wait()
    wait_until(lambda: is_gone(trainer), 2)
    wait_until(lambda: job_of(job_id).attempt == 2, 30)
    assert time.monotonic() - killed < LEASE_SECONDS + SLACK
    wait_for(job_id, "succeeded")
    assert result_of(job_id)["tensors_sha256"] == undisturbed
    assert [one.reason for one in attempts_of(job_id)] == ["lost_worker", "succeeded"]


def test_a_stopped_worker_loses_trainer_and_job_and_drops_it_when_it_goes_on(pair: Pair, undisturbed: str) -> None:
    job_id = submit(spec(LONG))
    wait_for_iteration(job_id, 12)
    holder = pair.holder(job_id)
    trainer = holder.trainer_of(job_id)
    assert trainer is not None
    holder.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: is_gone(trainer), LEASE_SECONDS + 1 - (time.monotonic() - stopped))
    wait_until(lambda: job_of(job_id).attempt == 2, 30)
    holder.signal(signal.SIGCONT)
    wait_for(job_id, "succeeded")
    assert result_of(job_id)["tensors_sha256"] == undisturbed
    assert [one.reason for one in attempts_of(job_id)] == ["lost_worker", "succeeded"]
    wait_until(lambda: f"attempt 1 of job {job_id} is over" in holder.log.read_text(), 10)


def test_a_worker_told_to_end_checkpoints_and_requeues_at_once(pair: Pair, undisturbed: str) -> None:
    # Without checkpoints its iterations take a fraction of the time.
    job_id = submit(spec(4 * LONG, checkpoint_every=1_000_000))
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
    assert (second.started_at - first.ended_at).total_seconds() < SLACK
    assert not (pair.folder / str(first.worker_id)).exists()


def test_the_lead_passes_on_when_its_holder_ends(pair: Pair) -> None:
    def leader() -> UUID | None:
        with transaction() as session:
            return session.scalar(select(Leadership.holder).where(Leadership.expires_at > func.now()))

    first = wait_until(leader)
    with transaction() as session:
        pid = session.scalars(select(Worker.pid).where(Worker.id == first)).one()
    lost = next(member for member in pair.members if member.pid == pid)
    lost.signal(signal.SIGKILL)
    lost.wait()
    wait_until(lambda: leader() not in (first, None), 15)
