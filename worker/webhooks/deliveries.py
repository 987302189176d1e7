"""Sends deliveries to webhooks: one thread of a worker checks whether some are due, and wakes several senders, each of which
sends one delivery at a time.

Any number of workers may do so. An idle one asks the database twice a second, and no more.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from threading import Event
from typing import Final

from service.core.database import transaction
from service.webhooks import deliveries, sealing, signing
from service.webhooks.deliveries import Outcome, Sending
from service.webhooks.sealing import Unreadable
from service.webhooks.settings import WebhookSettings
from worker.processes.failpoint import failpoint
from worker.processes.periodic_task import PeriodicTask
from worker.webhooks.sending import post

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 0.5
_LEASE_BEYOND_AN_ATTEMPT: Final = 5.0
"""Seconds by which the lease is longer than an attempt may take."""


class Senders:
    """The senders of one worker, and what wakes them."""

    def __init__(self, settings: WebhookSettings, stopping: Event) -> None:
        self._settings, self._stopping = settings, stopping
        self._called = Event()
        self._lease = timedelta(seconds=settings.seconds + _LEASE_BEYOND_AN_ATTEMPT)
        self._failing = timedelta(days=settings.failing_days)

    def periodic_tasks(self) -> list[PeriodicTask]:
        """The threads that check and send until the worker stops; none where this worker has no senders."""
        names = [f"webhooks {number}" for number in range(self._settings.senders)]
        looking = [PeriodicTask("webhooks", self.look, SECONDS_BETWEEN_LOOKS, self._stopping)] if names else []
        return looking + [PeriodicTask(name, self.send_when_called, 0.0, self._stopping) for name in names]

    def look(self) -> None:
        """Wakes the senders if a delivery is due."""
        with transaction() as session:
            due = deliveries.some_due(session)
        if due:
            self._called.set()

    def send_when_called(self) -> None:
        if self._called.wait(SECONDS_BETWEEN_LOOKS):
            self.send()
            # What has become due meanwhile is found by the next check.
            self._called.clear()

    def send(self) -> None:
        """Sends until nothing is due."""
        while not self._stopping.is_set() and self.send_next():
            pass

    def send_next(self) -> bool:
        """Sends the delivery that has been due longest; False if none is."""
        schedule = self._settings.retry_seconds
        with transaction() as session:
            sending = deliveries.take_next(session, self._lease, schedule)
        if sending is None:
            return False
        failpoint("webhook.taken")
        result = self._send(sending)
        failpoint("webhook.sent")
        with transaction() as session:
            reason = deliveries.finish(session, sending, result, schedule, self._failing)
        if not result.is_good:
            log.info(
                "webhook %s: delivery %s failed: %s",
                sending.webhook_id,
                sending.id,
                result.error or result.status,
            )
        if reason is not None:
            log.warning("webhook %s is disabled: %s", sending.webhook_id, reason)
        return True

    def _send(self, sending: Sending) -> Outcome:
        try:
            keys = [sealing.unseal(secret, self._settings.keys) for secret in sending.secrets]
        except Unreadable as error:
            return Outcome(None, str(error), "", 0.0, is_good=False, retry_after=None)
        body = sending.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "A-MAML webhooks",
            **signing.headers(str(sending.id), int(time.time()), body, keys),
        }
        answer = post(sending.url, headers, body, self._settings)
        return Outcome(
            answer.status, answer.error, answer.body.decode("utf-8", "replace"), answer.seconds, answer.is_good,
            answer.retry_after,
        )  # fmt: skip
