"""Ten thousand queued jobs cost whoever submits, lists or claims no more rows than a hundred do.

What that means by the clock is measured in benchmarks/latency.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import exists, func, select, text

from amaml.spec import JobSpec, SinusoidSpec
from service.core import outbox, quotas
from service.core.database import engine, transaction
from service.jobs import claims
from service.jobs import store as jobs
from service.jobs.store import Filter
from service.jobs.tables import Job
from service.keys import store as keys
from tests.support.jobs import LEASE, claimant
from tests.support.plans import watched

SPEC = JobSpec(family=SinusoidSpec())
FEW, MANY = 100, 10_000

Action = Callable[[Any], object]


@pytest.fixture
def workspace(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[UUID]:
    """Of a store of its own, which the store's functions use."""
    monkeypatch.setenv("AMAML_DATABASE_URL", database_url)
    # As in production, unlike in other tests: VACUUM marks no page as visible to all before its commits lie in the log.
    with engine().connect() as connection, connection.begin():
        connection.execute(text(f'ALTER DATABASE "{engine().url.database}" SET synchronous_commit = on'))
    engine().dispose()
    with transaction() as session:
        found = keys.ensure_workspace(session, "queue")
        session.execute(text("""UPDATE workspaces SET quotas = '{"queued_jobs": 30000}'"""))
    yield found
    engine().dispose()


def actions(workspace: UUID) -> dict[str, Action]:
    """By what users and workers wait for."""
    return {
        "submit": lambda session: jobs.submit(session, workspace, SPEC),
        "list": lambda session: jobs.page(session, workspace, Filter(), None, 50),
        "list queued": lambda session: jobs.page(session, workspace, Filter(state=["queued"]), None, 50),
        "claim": lambda session: claims.take_next(session, claimant(), LEASE),
        "look for lapsed": lambda session: session.scalar(select(exists().where(claims.QUEUE.has_lapsed()))),
        "look for overdue": lambda session: claims.some_wait(session, timedelta(0), ["auto", "cpu"]),
        "publish": lambda session: outbox.take_unsent(session, 10),
    }


def test_submitting_reads_no_more_of_ten_thousand_jobs_than_of_a_hundred(
    workspace: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue, as long as it is far from its bound, is counted once in a while; what was found holds in between."""
    monkeypatch.setattr(quotas, "COUNTED_SECONDS", 1e6)
    monkeypatch.setattr(quotas, "ROOM_SECONDS", 1e6)
    submit = actions(workspace)["submit"]
    costs = []
    for number in (FEW, MANY):
        fill(workspace, number)
        with transaction() as session:
            submit(session)
        with watched(engine()) as sent, transaction() as session:
            submit(session)
        costs.append((sent.count, sum(sent.rows("jobs", "outbox"))))
    (statements, rows), (statements_of_many, rows_of_many) = costs
    assert 0 < statements_of_many <= statements
    assert rows_of_many <= rows <= 2 * FEW


@pytest.mark.parametrize("state", ["queued", "cancelled"])
@pytest.mark.parametrize("name", ["list", "list queued", "claim", "look for lapsed", "look for overdue", "publish"])
def test_no_look_reads_the_whole_table(workspace: UUID, name: str, state: str) -> None:
    """Whether ten thousand jobs wait, or have ended and none waits."""
    fill(workspace, MANY, state)
    with watched(engine()) as sent, transaction() as session:
        actions(workspace)[name](session)
    rows = sent.rows("jobs", "outbox")
    assert rows, "it reads a table that grows"
    assert max(rows) <= (FEW if (name, state) != ("list queued", "cancelled") else MANY), sent.plans


def fill(workspace: UUID, number: int, state: str = "queued") -> None:
    """Queues jobs, with their wake-ups sent, until there are so many; or has jobs that have come to that state."""
    with transaction() as session:
        session.execute(text("UPDATE outbox SET sent_at = now()"))
        job_id = jobs.submit(session, workspace, SPEC).id
        have = session.scalars(select(func.count()).select_from(Job)).one()
        columns = ", ".join(column.name for column in Job.__table__.columns if column.name != "id")
        copy = f"INSERT INTO jobs ({columns}) SELECT {columns} FROM jobs, generate_series(1, :n) WHERE id = :id"  # noqa: S608 - our own names
        session.execute(text(copy), {"n": number - have, "id": job_id})
        if state != "queued":
            session.execute(text("UPDATE jobs SET state = :state, ended_at = now()"), {"state": state})
        sent = "INSERT INTO outbox (kind, payload, sent_at) SELECT 'wake', '{}', now() FROM generate_series(1, :n)"
        session.execute(text(sent), {"n": number - have})
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
