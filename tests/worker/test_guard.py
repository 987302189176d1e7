"""Postgres itself refuses what a table of legal steps doesn't have."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from service.adaptations.tables import Adaptation
from service.adaptations.transitions import ADAPTATION
from service.core.blobs import write
from service.core.database import transaction
from service.core.transitions import Transitions
from service.datasets.tables import Dataset
from service.datasets.transitions import DATASET
from service.jobs.tables import Event, Job
from service.jobs.transitions import FINAL, JOB, LEASED
from service.studies.tables import Study
from service.studies.transitions import STUDY
from service.webhooks.tables import Webhook, WebhookDelivery
from service.webhooks.transitions import DELIVERY
from tests.support.jobs import job_of, spec, submit, workspace

pytestmark = pytest.mark.usefixtures("store")


def new_job() -> UUID:
    return submit(spec(), wake=False)


def new_dataset() -> UUID:
    blob = write([uuid4().bytes])
    return added(
        Dataset(
            workspace_id=workspace(), name="", format="csv", families=[], sha256=blob.sha256, bytes=16, blob_id=blob.blob_id
        )
    )  # fmt: skip


def new_adaptation() -> UUID:
    return added(Adaptation(workspace_id=workspace(), job_id=new_job(), by="flow", request={}))


def new_delivery() -> UUID:
    webhook_id = added(
        Webhook(workspace_id=workspace(), url="https://a.b", description="", events=[], signature="hmac", secret="")
    )
    return added(WebhookDelivery(workspace_id=workspace(), webhook_id=webhook_id, type="webhook.test", body="{}"))


def new_study() -> UUID:
    return added(Study(workspace_id=workspace(), name="", base={}, grid={}, concurrency=1))


def added(row: Any) -> UUID:
    with transaction() as session:
        session.add(row)
        session.flush()
        row_id: UUID = row.id
    return row_id


LIVES: dict[str, tuple[Any, Transitions, Callable[[], UUID], str]] = {
    "job": (Job, JOB, new_job, "guard_job"),
    "data set": (Dataset, DATASET, new_dataset, "guard_dataset"),
    "adaptation": (Adaptation, ADAPTATION, new_adaptation, "guard_adaptation"),
    "delivery": (WebhookDelivery, DELIVERY, new_delivery, "guard_delivery"),
    "study": (Study, STUDY, new_study, "guard_study"),
}
"""Noun → table, its table of steps, what makes a new row, and the trigger's function."""
EVERY = pytest.mark.parametrize("noun", LIVES)


def force(noun: str, row_id: UUID, **values: Any) -> None:
    """As somebody with a console would."""
    table = LIVES[noun][0]
    with transaction() as session:
        session.execute(update(table).where(table.id == row_id).values(**values))


def step(noun: str, row_id: UUID, target: str) -> None:
    lease = func.now() + timedelta(seconds=30) if target in LEASED else None
    force(noun, row_id, state=target, **({} if noun == "study" else {"lease_expires_at": lease}))


def state_of(noun: str, row_id: UUID) -> str:
    table = LIVES[noun][0]
    with transaction() as session:
        return session.scalars(select(table.state).where(table.id == row_id)).one()


def one_that_is(noun: str, target: str) -> UUID:
    """A new row that has gone there by legal steps."""
    _, life, new, _ = LIVES[noun]
    ways: dict[str, list[str]] = {life.initial: []}
    while target not in ways:
        ways = {**{b: [*ways[a], b] for a, b in life.steps if a in ways}, **ways}
    row_id = new()
    for each in ways[target]:
        step(noun, row_id, each)
    return row_id


@EVERY
def test_the_database_holds_what_the_table_of_steps_says(noun: str) -> None:
    _, life, _, function = LIVES[noun]
    with transaction() as session:
        installed = session.scalar(text("SELECT prosrc FROM pg_proc WHERE proname = :name"), {"name": function})
    assert installed == life.guard(), "the table of steps has changed: write a revision with the new function"


@EVERY
def test_every_step_is_taken_or_refused_as_the_table_has_it(noun: str) -> None:
    life = LIVES[noun][1]
    states = {state for pair in life.steps for state in pair}
    for source in states:
        for target in states:
            row_id = one_that_is(noun, source)
            if (source, target) in life.steps or source == target:
                step(noun, row_id, target)
                assert state_of(noun, row_id) == target
            else:
                with pytest.raises(IntegrityError, match=f"{noun} .* is {source} and can't become {target}"):
                    step(noun, row_id, target)
                assert state_of(noun, row_id) == source


CHANGED = {
    "initialization_blob_id": lambda: write([b"other weights"]).blob_id,
    "weights_blob_id": lambda: write([b"other weights"]).blob_id,
    "ended_at": lambda: func.now() + timedelta(days=1),
    "checked_at": lambda: func.now() + timedelta(days=1),
    "attempt": lambda: 7,
    "rows": lambda: 7,
    "tasks": lambda: 7,
    "report": lambda: {"rows": 7},
}


@EVERY
def test_what_has_ended_keeps_its_outcome(noun: str) -> None:
    life = LIVES[noun][1]
    for state in life.final:
        row_id = one_that_is(noun, state)
        for column in life.outcome:
            with pytest.raises(IntegrityError, match="its outcome stays as it is"):
                force(noun, row_id, **{column: CHANGED[column]()})


def test_an_ended_job_may_be_renamed_and_deleted_with_its_events() -> None:
    for state in sorted(FINAL):
        job_id = one_that_is("job", state)
        force("job", job_id, name="another name")
        with transaction() as session:
            session.execute(delete(Job).where(Job.id == job_id))
            assert session.scalars(select(Event).where(Event.job_id == job_id)).all() == []


@pytest.mark.parametrize("noun", [noun for noun, (_, life, _, _) in LIVES.items() if life.fenced])
def test_a_fence_never_goes_back(noun: str) -> None:
    row_id = LIVES[noun][2]()
    force(noun, row_id, attempt=3)
    with pytest.raises(IntegrityError, match="its fence can't go back from 3"):
        force(noun, row_id, attempt=2)


def test_a_job_begins_queued() -> None:
    job = job_of(submit(spec(), wake=False))
    columns = ("workspace_id", "name", "tags", "spec", "spec_sha256", "family", "method", "device", "iterations")
    with pytest.raises(IntegrityError, match="a new job is queued, not succeeded"), transaction() as session:
        session.execute(insert(Job).values(state="succeeded", **{name: getattr(job, name) for name in columns}))
