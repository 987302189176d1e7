"""The Idempotency-Key of a request, and what its misuse is answered with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

from fastapi import Header

from service.core import idempotency
from service.http.problems import Problem

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Any text of your own; the same key and request, sent again, do nothing and are answered the same.",
    ),
]


def check_key(key: str | None) -> None:
    """Raises the 400 problem for a key that is none."""
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("bad_header", "Idempotency-Key must be 1 to 255 visible ASCII characters: a UUID, for example.")


@contextmanager
def as_problems() -> Iterator[None]:
    """What `service.core.idempotency.take` raises, as problems."""
    try:
        yield
    except idempotency.InFlight:
        raise Problem(
            "idempotency_in_flight", "The first request with this Idempotency-Key isn't through: ask again in a second.",
            headers={"Retry-After": "1"},
        ) from None  # fmt: skip
    except idempotency.Mismatch:
        raise Problem(
            "idempotency_mismatch", "This Idempotency-Key was used for another request: choose a new key for a new one."
        ) from None
