"""The quota of running jobs: claims hold to it, also at the same moment, and other workspaces don't wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from service.core import blobs, workspaces
from service.core.database import engine, transaction
from service.jobs import attempts
from service.jobs import store as jobs
from service.jobs.claims import Claim, hold, some_wait, take_next
from service.jobs.tables import Job
from service.keys import store as keys
from tests.support.jobs import LEASE, claimant, spec, take
from tests.support.plans import watched

pytestmark = pytest.mark.usefixtures("store")


def workspace(bound: int | None) -> UUID:
    with transaction() as session:
        workspace_id = keys.ensure_workspace(session, str(uuid4()))
        workspaces.set_quota(session, workspace_id, "running_jobs", bound)
    return workspace_id


def queue(workspace_id: UUID, count: int) -> list[UUID]:
    with transaction() as session:
        return [jobs.submit(session, workspace_id, spec(seed=seed)).id for seed in range(count)]


def end(claim: Claim) -> None:
    written = blobs.write([b"theta"])
    with transaction() as session:
        attempts.succeeded(session, hold(session, claim), written.blob_id, 1, iteration=9)


def running(workspace_id: UUID) -> int:
    with transaction() as session:
        query = select(func.count()).where(Job.workspace_id == workspace_id, Job.state == "running")
        return session.scalars(query).one()


def waits() -> bool:
    with transaction() as session:
        return some_wait(session, timedelta(0), ["cpu", "auto"])


def test_jobs_beyond_the_quota_stay_in_the_queue_until_one_ends() -> None:
    held = workspace(2)
    ids = queue(held, 4)
    first, second = take(), take()
    assert first is not None
    assert second is not None
    assert [first.id, second.id] == ids[:2]
    assert take() is None
    assert not waits(), "nobody is woken for what may not run"
    end(first)
    assert waits()
    third = take()
    assert third is not None
    assert third.id == ids[2]
    assert take() is None


def test_other_workspaces_pass_by() -> None:
    held, free = workspace(1), workspace(None)
    queue(held, 3)
    theirs = queue(free, 2)
    assert take() is not None
    got = [take(), take()]
    assert [claim.id for claim in got if claim] == theirs
    assert take() is None


def test_a_raised_quota_lets_more_run_at_once() -> None:
    held = workspace(1)
    queue(held, 3)
    assert take() is not None
    assert take() is None
    with transaction() as session:
        workspaces.set_quota(session, held, "running_jobs", 2)
    assert waits()
    assert take() is not None
    assert take() is None


def test_the_default_holds_where_there_is_no_quota_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.core.settings import settings

    monkeypatch.setenv("AMAML_QUOTA_RUNNING_JOBS", "1")
    settings.cache_clear()
    try:
        with transaction() as session:
            plain = keys.ensure_workspace(session, "plain")
        queue(plain, 2)
        queue(workspace(None), 2)
        assert [take() is not None for _ in range(4)] == [True, True, True, False]
        assert running(plain) == 1
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize("bound", [1, 3])
def test_claims_at_the_same_moment_keep_to_it(bound: int) -> None:
    held = workspace(bound)
    queue(held, 12)
    for _ in range(5):
        together = Barrier(8)

        def claim(_: int, together: Barrier = together) -> Claim | None:
            together.wait()
            return take()

        with ThreadPoolExecutor(8) as pool:
            got = [one for one in pool.map(claim, range(8)) if one is not None]
        assert running(held) <= bound
        while (one := take()) is not None:
            got.append(one)
        assert running(held) == bound
        for one in got:
            with transaction() as session:
                job = hold(session, one)
                attempts.stopped(session, job)
                job.queued_at = func.now()  # type: ignore[assignment]


def test_a_long_queue_that_is_held_does_not_slow_the_others_down() -> None:
    held, free = workspace(1), workspace(None)
    (first,) = queue(held, 1)
    assert take() is not None
    with transaction() as session:
        names = "workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, queued_at"
        session.execute(
            text(
                f"INSERT INTO jobs ({names}) SELECT {names.replace('queued_at', 'now()')} FROM jobs, "  # noqa: S608
                "generate_series(1, 10000) WHERE jobs.id = :job"
            ),
            {"job": first},
        )
    theirs = queue(free, 1)
    with transaction() as session:
        session.execute(text("ANALYZE jobs"))
        session.execute(update(Job).where(Job.id == theirs[0]).values(queued_at=func.now()))
    with watched(engine()) as sent, transaction() as session:
        found = take_next(session, claimant(), LEASE)
    assert found is not None
    assert found.id == theirs[0]
    # In one look that passes each of them over once.
    assert sent.count < 20
    assert sum(sent.rows("jobs")) < 11_000
