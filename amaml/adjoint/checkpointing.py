"""In which order states are recomputed when only some of them are kept.

Griewank & Walther 2000 (revolve): with s states kept, C(s+t, s) steps can be reversed when no step is recomputed more
than t times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb, isqrt

from torch import Tensor

Advance = Callable[[int, Tensor], Tensor]
"""(step number, state before it) → state after it."""


def states_backwards(start: int, end: int, state: Tensor, spare: int, advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """Yields (n, state before step n) for n = end−1 … start, from the state before step `start`, keeping at most `spare`
    states beside that one and the one that is yielded."""
    if end - start == 1:
        yield start, state
        return
    if spare == 0:
        for n in reversed(range(start, end)):
            yield n, _carry(start, n, state, advance)
        return
    middle = start + _split(end - start, spare + 1)
    yield from states_backwards(middle, end, _carry(start, middle, state, advance), spare - 1, advance)
    yield from states_backwards(start, middle, state, spare, advance)


def ever_shorter_stretches(rounds: int) -> set[int]:
    """Which steps' states to keep so that about √(2N) of them are alive at any time and every step is recomputed once.
    Kept states are used up on the way back, so an earlier stretch between two of them may be one longer."""
    due, at = set(), 0
    length = isqrt(2 * rounds) + 1
    while at < rounds:
        due.add(at)
        at += max(1, length)
        length -= 1
    return due


def all_states_backwards(start: int, end: int, state: Tensor, advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """The same with every state between kept."""
    states = [state]
    for n in range(start, end - 1):
        states.append(advance(n, states[-1]))
    for n in reversed(range(start, end)):
        yield n, states.pop()


def _carry(start: int, end: int, state: Tensor, advance: Advance) -> Tensor:
    for n in range(start, end):
        state = advance(n, state)
    return state


def _split(length: int, slots: int) -> int:
    """How far to carry before the next state is kept, with `slots` states counting the first."""
    repeats = 1
    while comb(slots + repeats, slots) < length:
        repeats += 1
    # The right part must be reversible with a slot less, the left part with a repeat less.
    return min(length - 1, max(1, length - comb(slots - 1 + repeats, slots - 1), comb(slots + repeats - 1, slots) // 2))
