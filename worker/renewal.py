"""Keeps the lease of a row that is worked on alive while the work goes on."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from service.core.database import transaction
from service.core.leased_queue import Held, LeasedQueue


class Abandoned(Exception):
    """The row is another worker's by now or is gone, or this worker is to end: its work is given up."""


class Renewal:
    """Renews the lease whenever a third of it has passed."""

    def __init__(self, queue: LeasedQueue[Any], held: Held, lease: timedelta) -> None:
        self._queue, self._held, self._lease = queue, held, lease
        self._pause = lease.total_seconds() / 3
        self._next = time.monotonic() + self._pause

    def if_due(self) -> None:
        """Raises Abandoned where the row is another's by now, or gone."""
        if time.monotonic() < self._next:
            return
        with transaction() as session:
            if not self._queue.renew(session, self._held, self._lease):
                raise Abandoned
        self._next = time.monotonic() + self._pause
