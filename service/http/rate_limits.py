"""Rate limits of API keys, by token buckets: each key's bucket is refilled steadily, and every request takes one token.

The buckets are in this process's memory alone, so each API process allows the whole rate; an operator who runs several divides
the rate among them. A key's bucket begins with its first authenticated request, so invented keys use no memory. From then on a
key without tokens is refused before the database is queried about it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from service.core.settings import settings
from service.http.problems import Problem

_FORGET_EVERY: Final = 1_000
"""Whenever so many new buckets were made, those that are full again are removed."""


class Standing(NamedTuple):
    """A key's bucket after a request."""

    allowed: bool
    remaining: int
    """Requests that may follow at once."""
    full_in: float
    """Seconds until the bucket is full, so that the whole burst may follow at once."""
    next_in: float
    """Seconds until a request may follow."""


class Buckets:
    """`rate` tokens a second flow into each bucket, which holds at most `burst`. Used from the event loop alone."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[bytes, tuple[float, float]] = {}
        """Key's digest → number of tokens, and the time when it was that."""
        self._forget_at = _FORGET_EVERY

    def __len__(self) -> int:
        return len(self._buckets)

    def open(self, name: bytes) -> None:
        """Makes a full bucket if there is none of this name."""
        if name in self._buckets:
            return
        if len(self._buckets) >= self._forget_at:
            self._forget_full()
        self._buckets[name] = float(self._burst), self._clock()

    def take(self, name: bytes) -> Standing | None:
        """Takes a token, if there is one; None for a name without a bucket."""
        if name not in self._buckets:
            return None
        now = self._clock()
        tokens = self._tokens(name, now)
        allowed = tokens >= 1
        if allowed:
            tokens -= 1
        self._buckets[name] = tokens, now
        return Standing(allowed, int(tokens), (self._burst - tokens) / self._rate, max(0.0, (1 - tokens) / self._rate))

    def _tokens(self, name: bytes, now: float) -> float:
        tokens, then = self._buckets[name]
        return min(self._burst, tokens + (now - then) * self._rate)

    def _forget_full(self) -> None:
        now = self._clock()
        for name in [one for one in self._buckets if self._tokens(one, now) >= self._burst]:
            del self._buckets[name]
        self._forget_at = len(self._buckets) + _FORGET_EVERY


class RateLimit:
    """This process's limit, from its settings; unlimited if the rate is 0."""

    def __init__(self) -> None:
        self._rate, self._burst = settings().rate_limit, settings().rate_burst
        self._buckets = Buckets(self._rate, self._burst) if self._rate else None

    def admit(self, key: str) -> dict[str, str]:
        """Headers with the state of the key's bucket, none for a key without one; raises the 429 problem."""
        standing = self._buckets.take(digest(key)) if self._buckets else None
        if standing is None:
            return {}
        headers = self._headers(standing)
        if not standing.allowed:
            seconds = max(1, math.ceil(standing.next_in))
            raise Problem(
                "rate_limited",
                f"More than {self._rate:g} requests a second come with this API key, and the {self._burst} that may come at "
                f"once are used up: wait {seconds} s, as Retry-After says, or poll less often.",
                headers={**headers, "Retry-After": str(seconds)},
            )
        return headers

    def first(self, key: str) -> dict[str, str]:
        """As `admit`, for a key that has just been authenticated."""
        if self._buckets is None:
            return {}
        self._buckets.open(digest(key))
        return self.admit(key)

    def _headers(self, standing: Standing) -> dict[str, str]:
        """Structured fields as in draft-ietf-httpapi-ratelimit-headers, with one policy."""
        window = max(1, math.ceil(self._burst / self._rate))
        return {
            "RateLimit-Policy": f'"key";q={self._burst};w={window}',
            "RateLimit": f'"key";r={standing.remaining};t={math.ceil(standing.full_in)}',
        }


def digest(key: str) -> bytes:
    """A key's SHA-256, which is kept instead of the key: memory may end up in a dump."""
    return hashlib.sha256(key.encode()).digest()
