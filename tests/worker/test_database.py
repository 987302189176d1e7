"""The way to Postgres: locks of stopped processes, connections that died, notices after a commit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.core.database import TRUSTED_SECONDS, engine, is_away, notify_after_commit, statements, transaction
from service.jobs import claims
from tests.support.jobs import lapse, spec, submit, taken
from tests.support.waiting import CEILING_SECONDS, wait_until


@pytest.mark.usefixtures("store")
def test_locks_of_a_stopped_process_are_let_go_of() -> None:
    job_id = submit(spec())
    taken()
    lapse(job_id)
    stopped = engine().connect()
    stopped.execute(text("SELECT id FROM jobs FOR UPDATE"))

    def is_free() -> bool:
        with transaction() as session:
            return claims.QUEUE.lapsed(session) is not None

    wait_until(is_free)
    with pytest.raises(DBAPIError) as cut:
        stopped.execute(text("SELECT 1"))
    assert is_away(cut.value)
    stopped.close()


def cut_all_connections(url: str) -> None:
    """As a restart of the server does."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_connection_that_died_in_the_pool_is_replaced(store: str) -> None:
    with transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
    cut_all_connections(store)
    time.sleep(TRUSTED_SECONDS + 0.1)
    with transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_one_that_was_just_used_fails_once_and_is_replaced(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.core.database.TRUSTED_SECONDS", 60)  # just now, however slow the machine is
    with statements() as session:
        assert session.scalar(text("SELECT 1")) == 1
    cut_all_connections(store)
    with pytest.raises(DBAPIError) as cut, transaction() as session:
        session.scalar(text("SELECT 1"))
    assert is_away(cut.value)
    with transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1


@pytest.mark.usefixtures("store")
def test_the_one_used_last_is_used_next() -> None:
    pid = text("SELECT pg_backend_pid()")
    with engine().connect() as first, engine().connect() as second:
        assert first.scalar(pid) != (last := second.scalar(pid))
        first.close()
    with engine().connect() as next_one:
        assert next_one.scalar(pid) == last


def tell_and_fail() -> None:
    with transaction() as session:
        notify_after_commit(session, "heard", "never")
        raise ZeroDivisionError


def test_notices_come_after_a_commit_and_only_then(store: str) -> None:
    with psycopg.connect(store.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute("LISTEN heard")
        with transaction() as session:
            notify_after_commit(session, "heard", "once")
            notify_after_commit(session, "heard", "once")
            assert not list(listener.notifies(timeout=0.2))
        assert [notice.payload for notice in listener.notifies(timeout=CEILING_SECONDS, stop_after=1)] == ["once"]
        with pytest.raises(ZeroDivisionError):
            tell_and_fail()
        assert not list(listener.notifies(timeout=0.3))


def test_of_many_commits_at_once_every_notice_is_heard(store: str) -> None:
    def commit(payload: str) -> None:
        with transaction() as session:
            notify_after_commit(session, "heard", payload)

    sent = [str(number) for number in range(200)]
    with psycopg.connect(store.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute("LISTEN heard")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(commit, sent))
        heard = listener.notifies(timeout=CEILING_SECONDS, stop_after=len(sent))
        assert sorted(notice.payload for notice in heard) == sorted(sent)
