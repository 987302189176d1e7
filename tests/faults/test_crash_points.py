"""A worker is killed at each of the places that the code names; the job ends once, and as if nothing had happened."""

from __future__ import annotations

import os
import signal
from uuid import UUID

import pytest
from sqlalchemy import delete

from service.core.database import transaction
from service.core.tables import Leadership
from tests.faults.places import places
from tests.support.audit import violations
from tests.support.jobs import (
    ask,
    bits_of,
    claim,
    job_of,
    lapse,
    spec,
    submit,
    undisturbed,
    wait_for,
    wait_for_iteration,
)
from tests.support.workers import Workers, trainer_of

pytestmark = pytest.mark.processes

ITERATIONS = 400
"""Enough for a job that is paused, or loses its trainer, to hear of it before it ends."""
CHECKPOINT_EVERY = 40
ELSEWHERE = ("study.", "webhook.", "adapter.", "trainer.")
"""test_studies.py, test_deliveries.py, test_adaptations.py and test_accidents.py of tests/worker kill at these places, and
test_trainer_crash_points.py beside this file."""


IN_A_WORKER = [name for name in places() if not name.startswith(ELSEWHERE)]


def test_each_place_has_a_name_of_its_own() -> None:
    assert len(set(places())) == len(places()) > 20
    assert IN_A_WORKER


class Crew:
    """Two ready workers: one to be killed, one to go on. Another starts in the place of the first as soon as that is dead."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.victim, self._other = workers.start(), workers.start()

    def wait_until_ready(self) -> None:
        for worker in (self.victim, self._other):
            worker.wait_until_ready()

    def freeze_the_other(self) -> None:
        """As long as it is frozen, whatever comes is the victim's; the repairs too, if it led them."""
        self._other.signal(signal.SIGSTOP)
        _end_of_leadership()

    def go_on_with_the_other(self) -> None:
        if not self.victim.is_alive:
            self.victim, self._other = self._other, self._workers.start()
            self.victim.signal(signal.SIGCONT)
            _end_of_leadership()
        else:
            self._other.signal(signal.SIGCONT)


def _end_of_leadership() -> None:
    """The lease of who leads the repairs has run out, so another may."""
    with transaction() as session:
        session.execute(delete(Leadership))


@pytest.fixture(scope="module")
def stub_crew(stubbed_workers: Workers) -> Crew:
    return Crew(stubbed_workers)


@pytest.fixture(scope="module")
def expected(stub_crew: Crew) -> str:
    """The hash of what an undisturbed job learns."""
    stub_crew.wait_until_ready()
    return bits_of(undisturbed(spec(ITERATIONS, checkpoint_every=CHECKPOINT_EVERY)))


@pytest.mark.parametrize("place", IN_A_WORKER)
def test_a_job_survives_a_kill_of_its_worker_at(place: str, stub_crew: Crew, expected: str) -> None:
    stub_crew.wait_until_ready()
    victim = stub_crew.victim
    stub_crew.freeze_the_other()
    try:
        victim.arm(f"{place}=kill")
        iterations = 100_000 if place.startswith("cancel.") else ITERATIONS
        job_id = submit(spec(iterations, checkpoint_every=CHECKPOINT_EVERY), wake=not place.startswith("lapse."))
        provoke(place, job_id)
        assert victim.wait() == -signal.SIGKILL
    finally:
        stub_crew.go_on_with_the_other()
    if job_of(job_id).lease_expires_at is not None:
        lapse(job_id)
    check(place, job_id, expected)


def provoke(place: str, job_id: UUID) -> None:
    """Has the worker come to the place."""
    kind = place.partition(".")[0]
    if kind == "lapse":
        claim(job_id)
        lapse(job_id)
    elif kind in ("requeue", "cancel", "stop"):
        wait_for_iteration(job_id, 5)
    if kind == "requeue":
        trainer = trainer_of(job_id)
        assert trainer is not None
        os.kill(trainer, signal.SIGKILL)
    elif kind in ("cancel", "stop"):
        ask(job_id, "cancel" if kind == "cancel" else "pause")


def check(place: str, job_id: UUID, expected: str) -> None:
    """The job ends well, and its rows are sound."""
    if place.startswith("cancel."):
        wait_for(job_id, "cancelled")
    else:
        if place.startswith("stop."):
            wait_for(job_id, "paused")
            ask(job_id, "resume")
        wait_for(job_id, "succeeded")
        assert bits_of(job_id) == expected
    with transaction() as session:
        assert violations(session) == []
