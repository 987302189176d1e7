"""The way to Postgres: one engine a process and URL, and the transaction that everything is written in."""

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
"""A process that is stopped amid a transaction holds its locks: the server ends such a transaction after this time."""
TRUSTED_SECONDS = 1.0
"""A pooled connection that was used so recently is taken to be alive. If it isn't, the first error empties the pool."""

LOSS_IS_NOTICED: Final[dict[str, Any]] = {
    "connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000,
}  # fmt: skip
"""Of a connection: a server that vanished without a word is noticed, instead of waited for."""

# Nothing is written, so there is nothing to wait for.
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


@cache  # never let go of: an engine that is dropped leaves its connections open
def _engine(url: str) -> Engine:
    made = create_engine(
        url,
        # FastAPI's thread pool runs 40 calls at once: none of them should wait for a connection and then time out. What
        # overflows is closed after use, and to open one costs more than most requests.
        pool_size=20,
        max_overflow=25,
        pool_use_lifo=True,  # the one used last was alive last, and a few stay busy instead of all lying idle in turn
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
    """Asks a connection that lay idle whether it is alive, as `pool_pre_ping` does of each; the pool replaces a dead one."""
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
    """Whether the error says that the database can't be reached, or cut the connection: trying again may help."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


@contextmanager
def transaction(url: str | None = None) -> Iterator[Session]:
    """A session that commits once, when the block ends, and rolls back when it raises. Sees what row_security lets it."""
    with Session(engine(url), expire_on_commit=False) as session:
        with session.begin():
            row_security.apply(session)
            yield session
        if session.info:
            _send(engine(url), session.info)


def notify_after_commit(session: Session, channel: str, payload: str) -> None:
    """Notifies once the transaction is committed, and not with its commit: PostgreSQL lets commits that notify through one at
    a time, each waiting for its disk. The notification may be lost, so whoever listens must look by itself now and then."""
    session.info[channel, payload] = None


_unsent: set[tuple[Engine, str, str]] = set()
_sending = Lock()


def _send(on: Engine, notifications: Iterable[tuple[str, str]]) -> None:
    """Whoever sends one sends those of the others too: of many commits at once, one notification serves several."""
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
    except DBAPIError as error:  # its cause is committed: to fail now would say that it isn't
        log.warning("a notification was lost; workers look by themselves", reason=str(error.orig))


@contextmanager
def statements(url: str | None = None) -> Iterator[Session]:
    """A session in which each statement is a transaction of its own: a third of the round trips for a look. Sees everything."""
    with Session(engine(url).execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False) as session:
        yield session
