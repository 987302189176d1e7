"""One ear on Postgres' notifications a process: whoever waits for a job's next event is woken when it is committed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import psycopg
import structlog
from sqlalchemy.engine import make_url

from service.core.database import NOTICES_LOSS, url_from_environment
from service.jobs.events import CHANNEL

_RECONNECT_SECONDS: Final = 1.0

log = structlog.get_logger()


class Notices:
    """`listen` runs as a task for as long as the process serves."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def listen(self) -> None:
        url = make_url(url_from_environment()).set(drivername="postgresql").render_as_string(hide_password=False)
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(url, autocommit=True, **NOTICES_LOSS) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._wake_all()  # what was committed while nobody listened
                    async for notice in connection.notifies():
                        for event in self._waiting.get(notice.payload, ()):
                            event.set()
            except (psycopg.Error, OSError) as error:
                log.warning("no notifications from the database; trying again", reason=str(error).strip())
            await asyncio.sleep(_RECONNECT_SECONDS)

    @contextmanager
    def of(self, job_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have news. Clear it before you look, then look, then wait."""
        event, key = asyncio.Event(), str(job_id)
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def _wake_all(self) -> None:
        for events in self._waiting.values():
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
