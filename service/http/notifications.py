"""Requests that wait in this process for a notification from Postgres: of a job's next event, or of the end of something."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from service.core.notifications import CHANGES, Listener


class Waiters:
    """All that wait in one event loop. Notifications arrive between `start` and `stop`."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def start(self) -> None:
        """Must be called in the event loop."""
        loop = asyncio.get_running_loop()
        self._listener = Listener(CHANGES, lambda payload: self._receive_in(loop, payload))
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop()

    @contextmanager
    def of(self, something: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever `something` may have changed. To miss no change: clear it, read the state, then wait."""
        event, key = asyncio.Event(), str(something)
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def _receive_in(self, loop: asyncio.AbstractEventLoop, payload: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._receive, payload)

    def _receive(self, payload: str | None) -> None:
        """Wakes who waits for what the payload names; for None all of them, as notifications may have been lost."""
        waiting = self._waiting.values() if payload is None else [self._waiting.get(payload, set())]
        for events in waiting:
            for event in events:
                event.set()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, but no longer than that; whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
