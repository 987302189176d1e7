"""Postgres' notifications: what is sent on which channel, and the thread that receives them.

A notification may be lost, so whoever waits for one also reads the database now and then without one.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Final, Literal

import psycopg
import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core.database import LOSS_IS_NOTICED, engine

Channel = Literal["amaml_events", "amaml_work"]

CHANGES: Final = "amaml_events"
"""Something that a request may wait for has changed: the payload is the id of the job, data set or adaptation."""
WORK: Final = "amaml_work"
"""There is work for workers: the payload is one of Work."""
Work = Literal["outbox", "data sets", "adaptations"]

POLL_SECONDS: Final = 0.5
"""How often a listener checks whether it is to stop."""
LONGEST_BACK_OFF: Final = 5.0

log = structlog.get_logger()


def notify(session: Session, channel: Channel, payload: str) -> None:
    """Notifies with the transaction's commit. Postgres makes such commits wait for each other: where many may come at once, and a
    lost notification does no harm, use `database.notify_after_commit`."""
    session.execute(select(func.pg_notify(channel, payload)))


class Listener(Thread):
    """Calls `receive` with the payload of each notification on `channel`, and with None whenever it has begun to listen, since
    notifications may have been lost before. Connects again, with back-off, when the connection to the database is lost."""

    def __init__(self, channel: Channel, receive: Callable[[str | None], None]) -> None:
        super().__init__(name=f"listener {channel}", daemon=True)
        self._channel, self._receive = channel, receive
        self._stopping = Event()

    def stop(self) -> None:
        """Returns at once; the thread ends soon."""
        self._stopping.set()

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._connected() as connection:
                    failures = 0
                    self._listen(connection)
            except psycopg.OperationalError as error:
                failures += 1
                log.warning("no notifications from the database; trying again", reason=str(error).strip())
                self._stopping.wait(min(0.25 * 2**failures, LONGEST_BACK_OFF))

    def _connected(self) -> psycopg.Connection:
        url = engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True, application_name=f"amaml {self.name}", **LOSS_IS_NOTICED)

    def _listen(self, connection: psycopg.Connection) -> None:
        connection.execute(f"LISTEN {self._channel}")
        self._receive(None)
        while not self._stopping.is_set():
            for notification in connection.notifies(timeout=POLL_SECONDS):
                self._receive(notification.payload)
