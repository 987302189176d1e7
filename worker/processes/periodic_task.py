"""A thread of the worker that does one thing again and again as long as the process lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from sqlalchemy.exc import DBAPIError

from service.core.database import is_away

log = logging.getLogger(__name__)

SHORTEST_BACK_OFF = 0.25
LONGEST_BACK_OFF = 5.0


class Unreachable(Exception):
    """What a step needs beside the database can't be reached; the sentence says what, and what follows."""


class PeriodicTask(Thread):
    """Calls `step` every `pause` seconds, and whenever it is woken, until `stopping` is set. While the database is away, or
    what else the step needs, the pauses grow.

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
            trouble = self._trouble()
            if trouble is None:
                failures = 0
                self._woken.wait(self._pause)
                continue
            if failures == 0:
                log.warning("%s: %s", self.name, trouble)
            failures += 1
            self._stopping.wait(min(SHORTEST_BACK_OFF * 2**failures, LONGEST_BACK_OFF))

    def _trouble(self) -> str | None:
        """Does the step once; a sentence where something that it needs is away."""
        try:
            self._step()
        except DBAPIError as error:
            if not is_away(error):
                raise
            return f"the database can't be reached, trying on: {error.orig}"
        except Unreachable as error:
            return str(error)
        return None
