"""Postgres' notifications: what is sent on which channel, and the thread that hears them.

A notification may be lost, so whoever waits for one looks by itself now and then.
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

NEWS: Final = "amaml_events"
"""Somebody may wait for it: the payload is the id of the job, data set or adaptation that has changed."""
WORK: Final = "amaml_work"
"""There is something to do for workers: the payload is one of Work."""
Work = Literal["outbox", "data sets", "adaptations"]

SECONDS_BETWEEN_LOOKS: Final = 0.5
"""At whether the listener is to stop."""
LONGEST_BACK_OFF: Final = 5.0

log = structlog.get_logger()


def notify(session: Session, channel: Channel, payload: str) -> None:
    """Notifies with the transaction's commit. Postgres lets such commits through one at a time: where there may be many at once,
    and a lost notification does no harm, use `database.notify_after_commit`."""
    session.execute(select(func.pg_notify(channel, payload)))


class Listener(Thread):
    """Calls `hear` with the payload of each notification on `channel`, and with None whenever it has begun to listen, since
    notifications may have been lost before. Connects again, with back-off, when the database goes away."""

    def __init__(self, channel: Channel, hear: Callable[[str | None], None]) -> None:
        super().__init__(name=f"listener {channel}", daemon=True)
        self._channel, self._hear = channel, hear
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
        self._hear(None)
        while not self._stopping.is_set():
            for notification in connection.notifies(timeout=SECONDS_BETWEEN_LOOKS):
                self._hear(notification.payload)
