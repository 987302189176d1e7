"""The order in which a trajectory's segments are recomputed when only some of their states are kept.

Griewank & Walther 2000 (revolve): with s kept states, C(s+t, s) segments can be reversed without recomputing any of them more
than t times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb, isqrt

from torch import Tensor

from amaml.flow.snapshots import Snapshots
from amaml.flow.trajectory import Trajectory

CHEAP_BYTES = 16 << 20
"""Up to this many bytes, all states are kept, since that saves a gradient for each step."""

Advance = Callable[[int, Tensor], Tensor]
"""(number of the segment, state before it) → state after it."""


def require_checkpoints(checkpoints: int | None) -> None:
    """Raises ValueError unless `checkpoints` is None or at least 1."""
    if checkpoints is not None and checkpoints < 1:
        raise ValueError(f"checkpoints must be None or at least 1, got {checkpoints}")


def snapshots(checkpoints: int | None, rounds: list[int] | None, segment: int, state_bytes: int) -> Snapshots:
    """The states that a forward solve keeps for an adjoint with at most `checkpoints` states (None: all states where they fit
    into CHEAP_BYTES, otherwise about √N). Segments have `segment` rounds, `rounds` are the numbers of rounds between horizons,
    where they are known beforehand, and one state has `state_bytes`."""
    if checkpoints is not None:
        return Snapshots(segment, limit=max(1, checkpoints - 1))
    cheap = CHEAP_BYTES // max(1, state_bytes)
    if rounds is None:
        return Snapshots(segment, cheap=cheap)
    segments = sum(-(-count // segment) for count in rounds)
    return Snapshots(segment, due=range(segments) if segments <= cheap else starts_of_shrinking_intervals(segments))


def segments_backwards(
    trajectory: Trajectory, segments: range, checkpoints: int | None
) -> Iterator[tuple[int, Tensor]]:
    """Yields (n, state before segment n [B, P]) from the last of the segments to the first. Removes the snapshots that it has
    used from the trajectory."""
    kept = trajectory.snapshots.states
    start, end = segments.start, segments.stop
    while end > start:
        at = next(reversed(kept))  # the latest one that is left
        first = max(at, start)
        state = _carry(at, first, kept[at], trajectory.advance)
        if checkpoints is None:
            yield from all_states_backwards(first, end, state, trajectory.advance)
        else:
            yield from states_backwards(first, end, state, max(0, checkpoints - 1 - len(kept)), trajectory.advance)
        if at >= start and at > 0:
            del kept[at]
        end = first


def states_backwards(start: int, end: int, state: Tensor, slots: int, advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """Yields (n, state before segment n) for n = end−1 … start, computed from `state`, the one before segment `start`. Keeps at
    most `slots` states in addition to that one and the one that is yielded."""
    if end - start == 1:
        yield start, state
        return
    if slots == 0:
        for n in reversed(range(start, end)):
            yield n, _carry(start, n, state, advance)
        return
    middle = start + _split(end - start, slots + 1)
    yield from states_backwards(middle, end, _carry(start, middle, state, advance), slots - 1, advance)
    yield from states_backwards(start, middle, state, slots, advance)


def starts_of_shrinking_intervals(segments: int) -> set[int]:
    """The segments whose states are kept so that about √(2N) states are alive at any time and each of the N segments is
    recomputed once. Every interval between two kept states is one segment shorter than the one before it: the reverse sweep has
    freed one more state by the time it reaches the longer one."""
    due, at = set(), 0
    length = (isqrt(max(0, 8 * segments - 7)) + 1) // 2  # the least n with n + (n − 1) + … + 1 ≥ segments
    while at < segments:
        due.add(at)
        at += length
        length -= 1
    return due


def all_states_backwards(start: int, end: int, state: Tensor, advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """The same as `states_backwards`, keeping every state."""
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
    """The number of segments before the next kept state, with `slots` states in all, the first included."""
    repeats = 1
    while comb(slots + repeats, slots) < length:
        repeats += 1
    # The right part must be reversible with one slot fewer, the left part with one repetition fewer.
    return min(length - 1, max(1, length - comb(slots - 1 + repeats, slots - 1), comb(slots + repeats - 1, slots) // 2))
