"""Access to Postgres: one engine per process and URL, and the transactions in which everything is read and written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from service.core import row_security

IDLE_SECONDS = 5
"""A process that is halted within a transaction keeps its locks: the server ends such a transaction after this time."""
TRUSTED_SECONDS = 1.0
"""A pooled connection that was used so recently is assumed to work. If it doesn't, the first error empties the pool."""

LOSS_IS_NOTICED: Final[dict[str, Any]] = {
    "connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000,
}  # fmt: skip
"""Options of a connection by which the loss of the server is noticed within seconds."""

# This transaction writes nothing, so its commit needn't wait for the disk.
_NOTIFY = text("SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :payload)")

log = structlog.get_logger()


def url_from_environment() -> str:
    """AMAML_DATABASE_URL; raises RuntimeError with the remedy where it isn't set."""
    url = os.environ.get("AMAML_DATABASE_URL")
    if not url:
        raise RuntimeError(
            "AMAML_DATABASE_URL is not set: give it a URL like postgresql+psycopg://user@127.0.0.1:5432/amaml"
        )
    return url


def engine(url: str | None = None) -> Engine:
    """The process's engine for `url` (default: AMAML_DATABASE_URL). Connects on first use, not here."""
    return _engine(url or url_from_environment())


@cache  # never evicted: an engine that is discarded leaves its connections open
def _engine(url: str) -> Engine:
    made = create_engine(
        url,
        # FastAPI's thread pool runs 40 calls at once, and none of them should wait for a connection until it times out.
        # Connections beyond the pool's size are closed after use, and opening one costs more than most requests.
        pool_size=20,
        max_overflow=25,
        pool_use_lifo=True,  # the one used last most likely works, and a few stay busy instead of all being idle in turn
        connect_args={
            "application_name": "amaml",
            "options": f"-c timezone=utc -c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
            **LOSS_IS_NOTICED,
        },
    )
    event.listen(made, "checkin", _note_use)
    event.listen(made, "checkout", _ping)
    return made


def _note_use(_: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ping(connection: Any, record: Any, _: Any) -> None:
    """Tests a connection that was idle, as `pool_pre_ping` does with every one; the pool replaces a broken connection."""
    if time.monotonic() - record.info.get("used", time.monotonic()) < TRUSTED_SECONDS:
        return
    before = connection.autocommit
    try:
        connection.autocommit = True  # no transaction for it
        connection.execute("")
        connection.autocommit = before
    except psycopg.Error as error:
        raise DisconnectionError from error


def is_away(error: DBAPIError) -> bool:
    """Whether the error is that the database can't be reached or has closed the connection: trying again may help."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


@contextmanager
def transaction(url: str | None = None) -> Iterator[Session]:
    """A session that commits when the block ends, and rolls back when it raises. It sees the rows that row_security allows."""
    with Session(engine(url), expire_on_commit=False) as session:
        with session.begin():
            row_security.apply(session)
            yield session
        if session.info:
            _send(engine(url), session.info)


def notify_after_commit(session: Session, channel: str, payload: str) -> None:
    """Notifies once the transaction is committed, and not with its commit: PostgreSQL makes commits that notify wait for each
    other, each for the disk. The notification may be lost, so listeners must also read the database now and then without one."""
    session.info[channel, payload] = None


_unsent: set[tuple[Engine, str, str]] = set()
_sending = Lock()


def _send(on: Engine, notifications: Iterable[tuple[str, str]]) -> None:
    """The thread that sends also sends what others add meanwhile: if many commit at once, one notification serves several."""
    _unsent.update((on, channel, payload) for channel, payload in notifications)
    while _unsent and _sending.acquire(blocking=False):
        try:
            _send_one(*_unsent.pop())
        finally:
            _sending.release()


def _send_one(on: Engine, channel: str, payload: str) -> None:
    try:
        with on.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(_NOTIFY, {"channel": channel, "payload": payload})
    except DBAPIError as error:  # what caused it is committed, which an exception here would deny
        log.warning("a notification was lost; workers will find the work without it", reason=str(error.orig))


@contextmanager
def statements(url: str | None = None) -> Iterator[Session]:
    """A session in which each statement is its own transaction: a single read takes a third of the round trips. Sees all rows."""
    with Session(engine(url).execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False) as session:
        yield session
