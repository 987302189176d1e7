"""A job whose trainer and worker are killed again and again learns what an undisturbed one learns, to the bit.

The worker never looks at method, family or architecture, so a change is tested with three of them, and each night all are.
That a run of every one resumes to the bit is tested within one process in tests/amaml/test_resume.py.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from uuid import UUID

import pytest
from sqlalchemy import select

from amaml.dataset_format import detect
from service.core import blobs
from service.core.database import transaction
from service.datasets import store as datasets
from service.datasets.tables import Dataset
from service.jobs import store as jobs
from service.jobs.tables import Checkpoint
from service.jobs.transitions import FINAL
from tests.support.audit import violations
from tests.support.cases import Case, cases, job
from tests.support.jobs import bits_of, events_of, job_of, metrics_of, submit, undisturbed, wait_for, workspace
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess, Workers, is_gone, trainer_of

pytestmark = pytest.mark.processes

ITERATIONS = 40
CHECKPOINT_EVERY = 2
PACE_SECONDS = 0.03
"""An iteration takes at least that: time for a checkpoint, a random wait and a kill, over and over, in a job of seconds."""
FOR_EVERY_CHANGE = ("maml", "ratings", "conv4")
"""A method, a family that reads a data set, an architecture."""


def dataset(content: bytes) -> str:
    """The id of a data set that was uploaded, and checked by a worker."""
    workspace_id, written = workspace(), blobs.write([content])
    with transaction() as session:
        dataset_id = datasets.add(session, workspace_id, written, detect(content, whole=True), "").dataset.id

    def state() -> str:
        with transaction() as session:
            return session.get_one(Dataset, dataset_id).state

    wait_until(lambda: state() != "pending")
    assert state() == "ready"
    return str(dataset_id)


class Crew:
    """Two workers; one that was killed is replaced."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def mend(self) -> None:
        pace = {"AMAML_FAILPOINT": f"trainer.reported=sleep:{PACE_SECONDS}@*", "AMAML_KERNEL": "on"}
        for _ in range(2 - len(self._workers.living)):
            self._workers.start(**pace)

    def kill(self, what: str, job_id: UUID, attempt: int) -> bool:
        """Whether there was one to kill that ran this attempt of the job, and it died of that."""
        trainer = trainer_of(job_id, attempt)
        if trainer is None or is_gone(trainer):
            return False
        holder = self._holder(job_id)
        if holder is None:
            return False
        if what == "worker":
            holder.kill()
        else:
            os.kill(trainer, signal.SIGKILL)
            wait_until(lambda: is_gone(trainer))
        return True

    def _holder(self, job_id: UUID) -> WorkerProcess | None:
        return next((worker for worker in self._workers.living if worker.runs(job_id)), None)


@pytest.fixture(scope="module")
def crew(workers: Workers) -> Crew:
    crew = Crew(workers)
    crew.mend()
    return crew


@pytest.mark.parametrize(
    "case",
    [case if case.name in FOR_EVERY_CHANGE else pytest.param(case, marks=pytest.mark.nightly) for case in cases()],
    ids=lambda case: case.name,
)
def test_a_job_killed_again_and_again_learns_the_same_bits(case: Case, crew: Crew) -> None:
    kills = (
        ("trainer", "worker")
        if case.name in FOR_EVERY_CHANGE
        else ("trainer", "worker", "trainer", "worker", "trainer")
    )
    spec = job(case, ITERATIONS, CHECKPOINT_EVERY, dataset)
    expected = undisturbed(spec)
    job_id = submit(spec)
    killed = kill_again_and_again(job_id, kills, crew, case.name)
    assert {attempt + 1 for attempt in killed} <= resumes(job_id), (
        "each kill was followed by an attempt from a checkpoint"
    )
    has_learned_the_same(job_id, expected)


@pytest.mark.nightly
def test_so_does_one_that_goes_on_from_anothers_checkpoint(crew: Crew) -> None:
    crew.mend()
    changes = {"method": {"kind": "amaml", "learn": ["rates"]}, "meta": {"average": 0.9}}
    source = undisturbed(job(Case("amaml", changes), ITERATIONS, CHECKPOINT_EVERY, dataset))
    step = job_of(source).iterations - 2 * CHECKPOINT_EVERY
    init_from = {"job": str(source), "step": step, "state": "full"}
    fork = Case("fork", {**changes, "meta": {"average": 0.9, "init_from": init_from}})
    spec = job(fork, 2 * ITERATIONS, CHECKPOINT_EVERY, dataset)
    expected = undisturbed(spec)
    job_id = submit(spec)
    kill_again_and_again(job_id, ("trainer", "worker", "trainer"), crew, "fork")
    has_learned_the_same(job_id, expected)


@pytest.mark.nightly
def test_so_does_one_that_is_extended(crew: Crew) -> None:
    crew.mend()
    case = Case("amaml", {"method": {"kind": "amaml", "learn": ["rates"]}, "meta": {"clip": {"window": 10}}})
    spec = job(case, 2 * ITERATIONS, CHECKPOINT_EVERY, dataset)
    expected = undisturbed(spec)
    short = spec.model_copy(update={"meta": spec.meta.model_copy(update={"iterations": ITERATIONS - 1})})
    job_id = undisturbed(short)
    with transaction() as session:
        assert jobs.extend(session, workspace(), job_id, short.extended(2 * ITERATIONS))
    kill_again_and_again(job_id, ("trainer", "worker", "trainer"), crew, "extended", after=1)
    has_learned_the_same(job_id, expected)


def kill_again_and_again(job_id: UUID, kills: Sequence[str], crew: Crew, name: str, after: int = 0) -> list[int]:
    """Kills who runs the job soon after each attempt's first checkpoint, until it has succeeded; those attempts."""
    chance = random.Random(name)  # noqa: S311 - accidents need not be unguessable
    killed: list[int] = []
    for what in kills:
        crew.mend()
        attempt = wait_for_checkpoint(job_id, killed[-1] if killed else after)
        time.sleep(chance.uniform(0, 4 * PACE_SECONDS))
        assert crew.kill(what, job_id, attempt), f"attempt {attempt} had ended: the job is {job_of(job_id).state}"
        killed.append(attempt)
    wait_for(job_id, "succeeded")
    return killed


def has_learned_the_same(job_id: UUID, expected: UUID) -> None:
    assert bits_of(job_id) == bits_of(expected)
    assert numbers(job_id) == numbers(expected)
    with transaction() as session:
        assert violations(session) == []


def wait_for_checkpoint(job_id: UUID, after: int) -> int:
    """Waits until an attempt after that one runs, and has committed a checkpoint of its own; its number."""

    def number() -> int | None:
        job = job_of(job_id)
        assert job.state not in FINAL, f"it ended too soon: {job.state}, {job.status_detail}"
        with transaction() as session:
            own = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.attempt == job.attempt)
            has_one = session.scalar(own.limit(1)) is not None
        return job.attempt if has_one and job.attempt > after else None

    return wait_until(number)


def resumes(job_id: UUID) -> set[int]:
    """The attempts that were queued to go on from a checkpoint."""
    sentences = [event.data["detail"] for event in events_of(job_id) if event.data.get("state") == "queued"]
    return {
        number
        for number, sentence in enumerate(sentences[1:], 2)
        if re.search(r"tried again from the checkpoint at iteration \d+", sentence)
    }


def numbers(job_id: UUID) -> dict[str, dict[int, float]]:
    """All metrics but the time and the memory that they took."""
    return {name: points for name, points in metrics_of(job_id).items() if name not in ("seconds", "memory_bytes")}
