"""`Prefer: wait=N` (RFC 7240): an answer that waits some seconds for a job, data set or adaptation to end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Final
from uuid import UUID

from fastapi import Header
from fastapi.concurrency import run_in_threadpool

from service.http.notifications import Waiters, is_set_within

LONGEST_WAIT: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait=(\d{1,6})\s*(?:$|[,;])")

Prefer = Annotated[
    str | None,
    Header(description="`wait=N`: the answer comes when it has ended, at the latest after N seconds, at most 60."),
]


def wanted_wait(prefer: str | None, usual: int = 0) -> int:
    """The seconds that the header names; `usual` if it names none."""
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), LONGEST_WAIT) if match else usual


async def until(waiters: Waiters, of: UUID, has_ended: Callable[[UUID], bool], seconds: float) -> None:
    """Returns when the job, data set or adaptation `of` has ended, at the latest after so many seconds."""
    give_up = asyncio.get_running_loop().time() + seconds
    with waiters.of(of) as event:
        while True:
            event.clear()
            if await run_in_threadpool(has_ended, of):
                return
            left = give_up - asyncio.get_running_loop().time()
            # Checks every five seconds at least, as notifications may have been lost.
            if left <= 0 or not (await is_set_within(event, min(left, 5.0)) or left > 5.0):
                return
