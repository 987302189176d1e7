"""The states that a forward solve keeps for the adjoint, chosen while its number of segments isn't known yet."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor


class Snapshots:
    """States by the number of the segment that starts from them; a segment has `segment` rounds of steps.

    Where the number of segments is known beforehand, `due` lists those whose states are kept. Otherwise, without a limit, all
    states are kept while there are at most `cheap` of them; after that only those of every s-th segment, where s doubles whenever
    more than 2s states are kept. So of N segments about √N … 1.5√N states are kept, and at most as many segments lie between two
    of them. With a limit, at most half of it is kept here, and at least one state; the other half is for the reverse sweep.
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
        """Keeps u, the state before segment `number`, if it is to be kept. It isn't copied: don't write into it later."""
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
    """Keeps no states: for a solve that no adjoint follows."""
    return Snapshots(due=())
