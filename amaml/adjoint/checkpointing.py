"""In which order a trajectory's segments are recomputed when only some of their states are kept.

Griewank & Walther 2000 (revolve): with s states kept, C(s+t, s) segments can be reversed when none is recomputed more
than t times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb, isqrt

from torch import Tensor

from amaml.flow.snapshots import Snapshots
from amaml.flow.trajectory import Trajectory

CHEAP_BYTES = 16 << 20
"""Of states that are kept one and all, since that saves a gradient a step."""

Advance = Callable[[int, Tensor], Tensor]
"""(segment's number, state before it) → state after it."""


def require_checkpoints(checkpoints: int | None) -> None:
    """Raises ValueError for a number of states that can't be."""
    if checkpoints is not None and checkpoints < 1:
        raise ValueError(f"checkpoints must be None or at least 1, got {checkpoints}")


def snapshots(checkpoints: int | None, rounds: list[int] | None, segment: int, state_bytes: int) -> Snapshots:
    """What a forward solve keeps for a way back with so many `checkpoints` (None: all that CHEAP_BYTES hold, else of the order of
    √N), in segments of that many rounds; `rounds` are the numbers of rounds to each horizon from the one before, where they
    are known, and a state takes `state_bytes`."""
    if checkpoints is not None:
        return Snapshots(segment, limit=max(1, checkpoints - 1))
    cheap = CHEAP_BYTES // max(1, state_bytes)
    if rounds is None:
        return Snapshots(segment, cheap=cheap)
    segments = sum(-(-count // segment) for count in rounds)
    return Snapshots(segment, due=range(segments) if segments <= cheap else ever_shorter_intervals(segments))


def segments_backwards(
    trajectory: Trajectory, segments: range, checkpoints: int | None
) -> Iterator[tuple[int, Tensor]]:
    """Yields (n, state before segment n [B, P]) from the last of the segments to the first. Uses up the trajectory's snapshots
    among them."""
    kept = trajectory.snapshots.states
    start, end = segments.start, segments.stop
    while end > start:
        at = next(reversed(kept))  # the latest that isn't used up
        first = max(at, start)
        state = _carry(at, first, kept[at], trajectory.advance)
        if checkpoints is None:
            yield from all_states_backwards(first, end, state, trajectory.advance)
        else:
            yield from states_backwards(first, end, state, max(0, checkpoints - 1 - len(kept)), trajectory.advance)
        if at >= start and at > 0:
            del kept[at]
        end = first


def states_backwards(start: int, end: int, state: Tensor, spare: int, advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """Yields (n, state before segment n) for n = end−1 … start, from the state before segment `start`, keeping at most `spare`
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


def ever_shorter_intervals(rounds: int) -> set[int]:
    """Which segments' states to keep so that about √(2N) of them are alive at any time and each segment is recomputed once.
    Kept states are used up on the way back, so an earlier interval between two of them may be one segment longer."""
    due, at = set(), 0
    length = (isqrt(max(0, 8 * rounds - 7)) + 1) // 2  # the least whose sum with all that are shorter reaches so many
    while at < rounds:
        due.add(at)
        at += length
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
