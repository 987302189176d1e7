"""How often a key may call: a bucket of tokens for each key, refilled steadily, of which every request takes one.

The buckets are this process's own: nothing is written or asked anywhere for them. So each API process allows the rate by itself;
an operator who runs several divides it among them. A bucket begins with a key's first good request, so made-up keys leave nothing
here; from then on a key that is out of tokens is refused before the database is asked about it.
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
"""Buckets: when so many new ones were made, those that are full again are forgotten."""


class Standing(NamedTuple):
    """A key's bucket after a request."""

    allowed: bool
    remaining: int
    """Requests that may follow at once."""
    full_in: float
    """Seconds until the whole burst may follow at once."""
    next_in: float
    """Seconds until a request may follow."""


class Buckets:
    """`rate` tokens a second flow into each bucket, which holds at most `burst`. Used from the event loop alone."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[bytes, tuple[float, float]] = {}
        """Key's digest → tokens that were there, and when."""
        self._forget_at = _FORGET_EVERY

    def __len__(self) -> int:
        return len(self._buckets)

    def open(self, name: bytes) -> None:
        """Begins a full bucket, where there is none."""
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
    """The limit of this process, by its settings; without one where the rate is 0."""

    def __init__(self) -> None:
        self._rate, self._burst = settings().rate_limit, settings().rate_burst
        self._buckets = Buckets(self._rate, self._burst) if self._rate else None

    def admit(self, key: str) -> dict[str, str]:
        """The headers that tell the key how it stands; raises the 429 problem. Nothing for a key not seen before."""
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
        """As `admit`, for a key that was found good."""
        if self._buckets is None:
            return {}
        self._buckets.open(digest(key))
        return self.admit(key)

    def _headers(self, standing: Standing) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers has them: structured fields, one policy."""
        window = max(1, math.ceil(self._burst / self._rate))
        return {
            "RateLimit-Policy": f'"key";q={self._burst};w={window}',
            "RateLimit": f'"key";r={standing.remaining};t={math.ceil(standing.full_in)}',
        }


def digest(key: str) -> bytes:
    """Not the key itself: what stands in memory may end up in a dump."""
    return hashlib.sha256(key.encode()).digest()
