"""Which states of the forward solve are kept, while its number of segments isn't known yet."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor


class Snapshots:
    """States by the number of the segment that starts from them; a segment is that many rounds of steps.

    `due` says which, where the number of segments is known. Otherwise, without a limit, all are kept while they are at most
    `cheap`; then the spacing s doubles as the number of states passes 2s, so that of N segments about √N … 1.5√N are kept, as
    many as lie between two of them at most. With a limit at most half of it is kept, and at least one: the rest is for the
    reverse sweep.
    """

    def __init__(
        self, segment: int = 1, limit: int | None = None, due: Container[int] | None = None, cheap: int = 2
    ) -> None:
        self.segment = segment
        self.states: dict[int, Tensor] = {}
        self._due, self._spacing = due, 1
        self._limit = None if limit is None else max(1, limit // 2)
        self._cheap = max(2, cheap)

    def offer(self, number: int, u: Tensor) -> None:
        """Keeps u if it is due. The tensor isn't copied: don't write into it later."""
        if self._due is not None:
            if number in self._due:
                self.states[number] = u
            return
        if number % self._spacing:
            return
        self.states[number] = u
        while len(self.states) > self._most():
            self._spacing *= 2
            self.states = {at: state for at, state in self.states.items() if at % self._spacing == 0}

    def _most(self) -> int:
        if self._limit is not None:
            return self._limit
        return self._cheap if self._spacing == 1 else 2 * self._spacing


def nothing_kept() -> Snapshots:
    """For a solve that no way back follows."""
    return Snapshots(due=())
