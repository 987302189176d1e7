"""Which states of the forward solve are kept, while its number of steps isn't known yet."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor


class Snapshots:
    """States by the number of the step that starts from them. Step 0's is always kept.

    `due` says which, where the number of steps is known. Otherwise, without a limit, the spacing s doubles as the number
    of states passes 2s, so that of N steps about √N … 1.5√N are kept, as many as lie between two of them at most. With a
    limit at most half of it is kept, and at least one: the rest is for the reverse sweep.
    """

    def __init__(self, limit: int | None = None, due: Container[int] | None = None) -> None:
        self.states: dict[int, Tensor] = {}
        self._due, self._spacing = due, 1
        self._limit = None if limit is None else max(1, limit // 2)

    def offer(self, step: int, u: Tensor) -> None:
        """Keeps u if it is due. The tensor isn't copied: don't write into it later."""
        if self._due is not None:
            if step in self._due:
                self.states[step] = u
            return
        if step % self._spacing:
            return
        self.states[step] = u
        while len(self.states) > (2 * self._spacing if self._limit is None else self._limit):
            self._spacing *= 2
            self.states = {at: state for at, state in self.states.items() if at % self._spacing == 0}
