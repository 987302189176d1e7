"""A process is killed at each of the places that the code names; the job ends once, and as if nothing had happened."""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from service.store.claims import Claimant, take_next
from service.store.database import transaction
from tests.faults.audit import violations
from tests.worker.conftest import (
    WorkerProcess,
    Workers,
    ask,
    result_of,
    spec,
    submit,
    wait_for,
    wait_for_iteration,
    wait_until,
)
from worker import failpoint

ITERATIONS = 400
"""Enough for a job that is paused, or loses its trainer, to hear of it before it ends."""


def places() -> list[str]:
    """The name of every failpoint in the code."""
    return [name for path in sorted(Path(failpoint.__file__).parent.glob("*.py")) for name in _places_in(path)]


def _places_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
            argument = node.args[0]
            assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: a failpoint is named by a literal"
            yield str(argument.value)


def test_each_place_has_a_name_of_its_own() -> None:
    assert len(set(places())) == len(places()) > 20


class Rescuer:
    """A worker that is stopped until it is called. It has a broker of its own, so that it takes no wake-up meanwhile."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def sleep(self) -> None:
        self._worker.signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._worker.signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def rescuer(workers: Workers) -> Rescuer:
    own = workers.environment["AMAML_BROKER_URL"].rpartition("/")[0] + "/1"
    worker = workers.start(AMAML_BROKER_URL=own)
    worker.wait_until_ready()
    return Rescuer(worker)


@pytest.fixture(scope="module")
def undisturbed(rescuer: Rescuer) -> str:
    job_id = submit(spec(ITERATIONS))
    wait_for(job_id, "succeeded")
    return result_of(job_id)["tensors_sha256"]


ALWAYS = ("claim.committed", "checkpoint.uploaded", "finish.before_commit")
"""Run with the rest of the suite; all the others with those that take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.faults)
        for name in places()
        # test_studies.py, test_deliveries.py and test_adaptations.py of tests/worker kill there.
        if not name.startswith(("study.", "webhook.", "adapter."))
    ],
)
def test_a_job_survives_a_kill_at(
    place: str, workers: Workers, rescuer: Rescuer, undisturbed: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    rescuer.sleep()
    job_id = abandoned_job() if place.startswith("lapse.") else None
    victim = workers.start(**{failpoint.VARIABLE: f"{place}=kill", failpoint.MARK: str(mark)})
    try:
        victim.wait_until_ready() if job_id is None else None
        job_id = job_id or submit(spec(100_000 if place.startswith("cancel.") else ITERATIONS))
        provoke(place, job_id, victim)
        wait_until(mark.exists)
        if not place.startswith("trainer."):
            assert victim.wait() == -signal.SIGKILL
        rescuer.wake()
        if place.startswith("cancel."):
            wait_for(job_id, "cancelled")
        else:
            if place.startswith("stop."):
                wait_for(job_id, "paused")
                ask(job_id, "queued")
            wait_for(job_id, "succeeded")
            assert result_of(job_id)["tensors_sha256"] == undisturbed
    finally:
        rescuer.wake()
        if victim.is_alive:
            victim.stop()
    with transaction() as session:
        assert violations(session) == []


def abandoned_job() -> UUID:
    """One that a worker claimed which isn't there any more."""
    job_id = submit(spec(ITERATIONS), wake=False)
    nobody = Claimant(id=uuid4(), host="nowhere", devices=["cpu"], threads=1, versions={})
    with transaction() as session:
        assert take_next(session, nobody, timedelta(milliseconds=1)) is not None
    return job_id


def provoke(place: str, job_id: UUID, victim: WorkerProcess) -> None:
    """Has the worker come to the place."""
    kind = place.partition(".")[0]
    if kind in ("requeue", "cancel", "stop"):
        wait_for_iteration(job_id, 5)
    if kind == "requeue":
        trainer = victim.trainer_of(job_id)
        assert trainer is not None
        os.kill(trainer, signal.SIGKILL)
    elif kind in ("cancel", "stop"):
        ask(job_id, "cancelling" if kind == "cancel" else "pausing")
