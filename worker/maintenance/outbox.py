"""Publishes the outbox: hands what was written there to the broker.

While the broker is away the messages stay where they are and are tried again. A wake-up says nothing but that there is
work, so a queue that already holds plenty of them gets no more.
"""

from __future__ import annotations

from typing import Final

import kombu.exceptions
from celery import Celery

from service.core import outbox
from service.core.database import transaction
from worker.processes.failpoint import failpoint
from worker.processes.periodic_task import Unreachable

TASK: Final = "wake"
SECONDS_BETWEEN_LOOKS: Final = 5.0
"""Without a notification, which may be lost."""
BATCH: Final = 500
PLENTY: Final = 32
"""Wake-ups that the broker's queue holds at most: a worker that takes one works until no job waits, so more are useless."""


def publish_all(app: Celery) -> None:
    """Publishes until nothing is left; raises Unreachable while the broker is away."""
    try:
        while publish(app):
            pass
    except kombu.exceptions.OperationalError as error:
        raise Unreachable(f"the broker can't be reached; wake-ups wait in the outbox: {error}") from error


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
