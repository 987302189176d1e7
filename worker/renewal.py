"""Keeps the lease of a small piece of work alive while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from service.core.database import transaction


class Abandoned(Exception):
    """The work is another's by now, or nobody wants it any more, or the worker is to end."""


class Renewal:
    """Renews three times a lease; raises Abandoned where `renew` says that it is lost."""

    def __init__(self, renew: Callable[[Session], bool], lease_seconds: float) -> None:
        self._renew, self._pause = renew, lease_seconds / 3
        self._next = time.monotonic() + self._pause

    def if_due(self) -> None:
        if time.monotonic() < self._next:
            return
        with transaction() as session:
            if not self._renew(session):
                raise Abandoned
        self._next = time.monotonic() + self._pause
