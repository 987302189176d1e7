"""Waiting for what a process or a database is to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CEILING_SECONDS = 120.0
"""Long enough for a machine that is busy with other things: whoever waits so long waits in vain. No test asserts a time."""


def wait_until(what: Callable[[], T], seconds: float = CEILING_SECONDS) -> T:
    """What the function returns once it is true; fails when that takes longer than the ceiling."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(0.02)
    return value
