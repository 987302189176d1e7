"""Publishes the outbox: hears of new messages by LISTEN, looks by itself now and then, and hands them to the broker.

While the broker is away the messages stay where they are and are tried again. A wake-up says nothing but that there is
work, so a queue that already holds plenty of them gets no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Thread
from types import MappingProxyType

import kombu.exceptions
import psycopg
from celery import Celery
from sqlalchemy.exc import DBAPIError

from service.core import outbox
from service.core.database import NOTICES_LOSS, engine, is_away, transaction
from worker.processes.failpoint import failpoint

log = logging.getLogger(__name__)

TASK = "wake"
SECONDS_BETWEEN_LOOKS = 5.0
BATCH = 500
PLENTY = 32
"""Wake-ups in the queue: whoever takes one works until no job waits, so more would wake nobody else."""
LONGEST_BACK_OFF = 5.0


class OutboxPublisher(Thread):
    """Runs until `stopping` is set or the process ends. `listeners`: what is called for a
    notification, by its payload."""

    def __init__(
        self, app: Celery, stopping: Event, listeners: Mapping[str, Sequence[Callable[[], None]]] = MappingProxyType({})
    ) -> None:
        super().__init__(name="outbox", daemon=True)
        self._app, self._stopping, self._listeners = app, stopping, listeners

    def run(self) -> None:
        back_off = 0.25
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._listen_and_publish()
            except psycopg.OperationalError as error:
                log.warning("outbox: the database can't be reached, trying on: %s", error)
            except DBAPIError as error:
                if not is_away(error):
                    raise
                log.warning("outbox: the database can't be reached, trying on: %s", error.orig)
            except kombu.exceptions.OperationalError as error:
                log.warning("outbox: the broker can't be reached; wake-ups wait in the outbox: %s", error)
            back_off = 0.25 if time.monotonic() - began > LONGEST_BACK_OFF else min(2 * back_off, LONGEST_BACK_OFF)
            self._stopping.wait(back_off)

    def _listen_and_publish(self) -> None:
        """Returns when it is to stop; raises when database or broker go away."""
        url = engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True, application_name="amaml outbox", **NOTICES_LOSS) as connection:
            connection.execute(f"LISTEN {outbox.CHANNEL}")
            while not self._stopping.is_set():
                while publish(self._app):
                    pass
                for notice in connection.notifies(timeout=SECONDS_BETWEEN_LOOKS, stop_after=1):
                    for call in self._listeners.get(notice.payload, ()):
                        call()


def publish(app: Celery) -> int:
    """Hands the oldest unsent messages to the broker and marks them sent; their number.

    A crash between the two sends them again. Raises kombu.exceptions.OperationalError if the broker is away.
    """
    with transaction() as session:
        messages = outbox.take_unsent(session, BATCH)
        if messages:
            failpoint("publish.taken")
            _wake(app, len(messages))
            failpoint("publish.sent")
            outbox.mark_sent(session, messages)
            failpoint("publish.before_commit")
    return len(messages)


def _wake(app: Celery, times: int) -> None:
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=3, reraise_as_library_errors=True)
        channel = connection.default_channel
        waiting = channel.client.llen(app.conf.task_default_queue)
        for _ in range(min(times, PLENTY - waiting)):
            app.send_task(TASK, connection=connection, retry=False)
