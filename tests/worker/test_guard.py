"""Postgres itself refuses what the table of legal steps doesn't have."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from service.core.blobs import write
from service.core.database import transaction
from service.jobs import trigger as guard
from service.jobs.tables import Event, Job
from service.jobs.transitions import FINAL, LEASED, STATES, TRANSITIONS, State
from tests.support.jobs import job_of, spec, submit

pytestmark = pytest.mark.usefixtures("store")


def force(job_id: UUID, **values: Any) -> None:
    """As somebody with a console would."""
    with transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def step(job_id: UUID, target: State) -> None:
    lease = func.now() + timedelta(seconds=30) if target in LEASED else None
    force(job_id, state=target, lease_expires_at=lease)


def way_to(target: State) -> list[State]:
    """Legal steps from queued."""
    ways: dict[State, list[State]] = {"queued": []}
    while target not in ways:
        ways = {**{b: [*ways[a], b] for a, b in TRANSITIONS if a in ways}, **ways}
    return ways[target]


def job_that_is(state: State) -> UUID:
    job_id = submit(spec(), wake=False)
    for each in way_to(state):
        step(job_id, each)
    return job_id


def test_the_database_holds_what_the_table_says() -> None:
    with transaction() as session:
        installed = session.scalar(text("SELECT prosrc FROM pg_proc WHERE proname = 'guard_job'"))
    assert installed == guard.function_body(), "the table of steps has changed: write a revision with the new function"


@pytest.mark.parametrize("source", STATES)
def test_every_step_is_taken_or_refused_as_the_table_has_it(source: State) -> None:
    for target in STATES:
        job_id = job_that_is(source)
        if (source, target) in TRANSITIONS or source == target:
            step(job_id, target)
            assert job_of(job_id).state == target
        else:
            with pytest.raises(IntegrityError, match=f"is {source} and can't become {target}"):
                step(job_id, target)
            assert job_of(job_id).state == source


@pytest.mark.parametrize("state", sorted(FINAL))
def test_an_ended_job_keeps_its_outcome(state: State) -> None:
    job_id = job_that_is(state)
    blob_id = write([b"other weights"]).blob_id
    outcomes = {"initialization_blob_id": blob_id, "ended_at": func.now() + timedelta(days=1), "attempt": 7}
    assert set(outcomes) == set(guard.OUTCOME)
    for column, value in outcomes.items():
        with pytest.raises(IntegrityError, match="its outcome stays as it is"):
            force(job_id, **{column: value})
    force(job_id, name="another name")
    with transaction() as session:
        session.execute(delete(Job).where(Job.id == job_id))
        assert session.scalars(select(Event).where(Event.job_id == job_id)).all() == []


def test_a_fence_never_goes_back() -> None:
    job_id = submit(spec(), wake=False)
    force(job_id, attempt=3)
    with pytest.raises(IntegrityError, match="its fence can't go back from 3"):
        force(job_id, attempt=2)


def test_a_job_begins_queued() -> None:
    job = job_of(submit(spec(), wake=False))
    columns = ("workspace_id", "name", "tags", "spec", "spec_sha256", "family", "method", "device", "iterations")
    with pytest.raises(IntegrityError, match="a new job is queued, not succeeded"), transaction() as session:
        session.execute(insert(Job).values(state="succeeded", **{name: getattr(job, name) for name in columns}))
