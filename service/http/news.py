"""Who waits for a job's next event, or for another thing's end, is woken when Postgres notifies of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from service.core.notifications import NEWS, Listener


class News:
    """What waits in this process, in one event loop; hears notifications between `start` and `stop`."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def start(self) -> None:
        """Must be called in the event loop."""
        loop = asyncio.get_running_loop()
        self._listener = Listener(NEWS, lambda payload: self._hear_in(loop, payload))
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop()

    @contextmanager
    def of(self, something: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever it may have news. Clear it before you look, then look, then wait."""
        event, key = asyncio.Event(), str(something)
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def _hear_in(self, loop: asyncio.AbstractEventLoop, payload: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._hear, payload)

    def _hear(self, payload: str | None) -> None:
        """None: what was committed meanwhile may have gone unheard, so everybody looks."""
        waiting = self._waiting.values() if payload is None else [self._waiting.get(payload, set())]
        for events in waiting:
            for event in events:
                event.set()


async def news(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event at most that long; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
