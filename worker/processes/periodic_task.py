"""A thread of the worker that does one thing again and again as long as the process lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from sqlalchemy.exc import DBAPIError

from service.core.database import is_away

log = logging.getLogger(__name__)

LONGEST_BACK_OFF = 5.0


class PeriodicTask(Thread):
    """Calls `step` every `pause` seconds, and whenever it is woken, until `stopping` is set; less often while the
    database is away.

    Any other error is a fault of the program: it ends the thread, and with it the process (see worker.main), to be
    started anew by whoever watches over it.
    """

    def __init__(self, name: str, step: Callable[[], None], pause: float, stopping: Event) -> None:
        super().__init__(name=name, daemon=True)
        self._step, self._pause, self._stopping = step, pause, stopping
        self._woken = Event()

    def wake(self) -> None:
        """There is something to do, or `stopping` was set."""
        self._woken.set()

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self._step()
                failures = 0
            except DBAPIError as error:
                if not is_away(error):
                    raise
                failures += 1
                pause = min(self._pause * 2**failures, LONGEST_BACK_OFF)
                if failures == 1:
                    log.warning("%s: the database can't be reached, trying on: %s", self.name, error.orig)
                self._stopping.wait(pause)
                continue
            self._woken.wait(self._pause)
