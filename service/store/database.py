"""The way to Postgres: one engine a process and URL, and the transaction that everything is written in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

IDLE_SECONDS = 5
"""A process that is stopped amid a transaction holds its locks: the server ends such a transaction after this time."""


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
    return create_engine(
        url,
        pool_pre_ping=True,
        # FastAPI's thread pool runs 40 calls at once: none of them should wait for a connection and then time out.
        pool_size=10,
        max_overflow=35,
        connect_args={
            "connect_timeout": 5,
            "application_name": "amaml",
            "options": f"-c timezone=utc -c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
            # A server that vanished without a word is noticed, instead of waited for.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
    )


def is_away(error: DBAPIError) -> bool:
    """Whether the error says that the database can't be reached, or cut the connection: trying again may help."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


@contextmanager
def transaction(url: str | None = None) -> Iterator[Session]:
    """A session that commits once, when the block ends, and rolls back when it raises."""
    with Session(engine(url), expire_on_commit=False) as session, session.begin():
        yield session
