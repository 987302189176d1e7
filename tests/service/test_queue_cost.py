"""Ten thousand queued jobs cost whoever submits, lists or claims what a hundred do: by an index, and by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from amaml.spec import JobSpec, SinusoidSpec
from service.store import claims, jobs, keys, outbox
from service.store.claims import Claimant
from service.store.database import engine, transaction
from service.store.jobs import Filter
from service.store.tables import Job

SPEC = JobSpec(family=SinusoidSpec())
WORKER = Claimant(id=uuid4(), host="here", devices=["cpu"], threads=1, versions={})
FEW, MANY = 100, 10_000
REPEATS = 40
SLACK = 0.002
"""Seconds that a busy machine may add to a median of milliseconds."""

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
        session.execute(text("""UPDATE workspaces SET quotas = '{"queued_jobs": 20000}'"""))
    yield found
    engine().dispose()


def actions(workspace: UUID) -> dict[str, Action]:
    """By what users and workers wait for."""
    return {
        "submit": lambda session: jobs.submit(session, workspace, SPEC),
        "list": lambda session: jobs.page(session, workspace, Filter(), None, 50),
        "list queued": lambda session: jobs.page(session, workspace, Filter(state=["queued"]), None, 50),
        "claim": lambda session: claims.take_next(session, WORKER, timedelta(minutes=5)),
        "look for lapsed": claims.some_lapsed,
        "look for overdue": lambda session: claims.some_wait(session, timedelta(0), ["auto", "cpu"]),
        "publish": lambda session: outbox.take_unsent(session, 10),
    }


@pytest.mark.slow
def test_ten_thousand_queued_jobs_cost_what_a_hundred_do(workspace: UUID) -> None:
    costs = []
    for number in (FEW, MANY):
        fill(workspace, number)
        costs.append({name: median(action) for name, action in actions(workspace).items()})
    few, many = costs
    dearer = {name: (few[name], many[name]) for name in few if many[name] > 2 * few[name] + SLACK}
    assert dearer == {}


@pytest.mark.parametrize("state", ["queued", "cancelled"])
@pytest.mark.parametrize("name", ["list", "list queued", "claim", "look for lapsed", "look for overdue", "publish"])
def test_no_look_reads_the_whole_table(workspace: UUID, name: str, state: str) -> None:
    """Whether ten thousand jobs wait, or have ended and none waits."""
    fill(workspace, MANY, state)
    with explained(engine()) as plans, transaction() as session:
        actions(workspace)[name](session)
    read = [node for plan in plans for node in nodes(plan) if node.get("Relation Name") in ("jobs", "outbox")]
    assert read, "it reads a table that grows"
    rows = [node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in read]
    assert max(rows) <= (FEW if (name, state) != ("list queued", "cancelled") else MANY), read


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


def median(action: Action) -> float:
    """Seconds of its transaction."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        with transaction() as session:
            action(session)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class explained:  # noqa: N801 - used as a function
    """Gathers what Postgres does for each query that is sent meanwhile."""

    def __init__(self, of: Engine) -> None:
        self._engine = of
        self._plans: list[dict[str, Any]] = []

    def __enter__(self) -> list[dict[str, Any]]:
        event.listen(self._engine, "before_cursor_execute", self._explain)
        return self._plans

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._explain)

    def _explain(self, connection: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        if statement.startswith("SELECT"):
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            row = cursor.fetchone()
            assert row is not None
            self._plans.append(row[0][0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
