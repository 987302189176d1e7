"""`Prefer: wait=N` (RFC 7240): answers that wait for an end, if it comes soon."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Final
from uuid import UUID

from fastapi import Header
from fastapi.concurrency import run_in_threadpool

from service.http.news import News, news

LONGEST_WAIT: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait=(\d{1,6})\s*(?:$|[,;])")

Prefer = Annotated[
    str | None, Header(description="`wait=N`: answer when it has ended, or after N seconds, at most 60.")
]


def wanted_wait(prefer: str | None, usual: int = 0) -> int:
    """Seconds; `usual` where nothing is said of waiting."""
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), LONGEST_WAIT) if match else usual


async def until(waiting: News, of: UUID, has_ended: Callable[[UUID], bool], seconds: float) -> None:
    """Returns when what `of` names (a job, a data set, an adaptation) has ended, and at the latest after so many seconds."""
    give_up = asyncio.get_running_loop().time() + seconds
    with waiting.of(of) as event:
        while True:
            event.clear()
            if await run_in_threadpool(has_ended, of):
                return
            left = give_up - asyncio.get_running_loop().time()
            # Looks again every five seconds at least, should the connection to the database have been lost meanwhile.
            if left <= 0 or not (await news(event, min(left, 5.0)) or left > 5.0):
                return
