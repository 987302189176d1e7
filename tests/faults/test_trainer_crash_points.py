"""A trainer is killed at each of the places that the code names in it; its job ends once, and as if nothing had happened."""

from __future__ import annotations

import pytest

from service.core.database import transaction
from tests.faults.places import places
from tests.support.audit import violations
from tests.support.jobs import bits_of, job_of, spec, submit, undisturbed, wait_for
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess

pytestmark = [pytest.mark.nightly, pytest.mark.processes]

SPEC = spec(100)


@pytest.fixture(scope="module")
def expected(worker: WorkerProcess) -> str:
    """The hash of what an undisturbed job learns."""
    return bits_of(undisturbed(SPEC))


@pytest.mark.parametrize("place", [name for name in places() if name.startswith("trainer.")])
def test_a_job_survives_a_kill_of_its_trainer_at(place: str, worker: WorkerProcess, expected: str) -> None:
    worker.arm(f"{place}=kill")
    job_id = submit(SPEC)
    wait_until(lambda: worker.accident_happened)
    wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    # What it said last holds, though it died of that.
    assert job_of(job_id).attempt == (1 if place == "trainer.told_the_end" else 2)
    with transaction() as session:
        assert violations(session) == []
