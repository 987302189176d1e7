"""The discrete adjoint: the exact reverse of the accepted forward steps, stages included, step sizes held constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from amaml.adjoint.checkpointing import all_states_backwards, ever_shorter_stretches, states_backwards
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.guard import Lookout
from amaml.flow.runge_kutta import reverse, stage_states
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import Trajectory


@dataclass(frozen=True)
class Discrete:
    """Equals backpropagation through the solver to rounding, without its graph.

    `checkpoints=None` keeps of the order of √N states from the forward solve and recomputes the others once, a stretch at
    a time: about √(2N) are alive at once for N fixed steps;
    `checkpoints=k` has at most k states alive (at least two: the first and the current one) and recomputes as often as
    the binomial schedule asks.
    """

    checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoints is not None and self.checkpoints < 1:
            raise ValueError(f"checkpoints must be None or at least 1, got {self.checkpoints}")

    def snapshots(self, rounds: int | None) -> Snapshots:
        """What the forward solve keeps; `rounds` is its number of steps where that is known."""
        if self.checkpoints is not None:
            return Snapshots(limit=max(1, self.checkpoints - 1))
        return Snapshots(due=None if rounds is None else ever_shorter_stretches(rounds))

    def solve(self, trajectory: Trajectory, jumps: list[Tensor], sensitivity: Sensitivity) -> Tensor:
        """λ(0) [B, P]; λ jumps by `jumps[k]` at the k-th horizon. Uses up the trajectory's snapshots."""
        adjoint = jumps[-1]
        lookout = trajectory.lookout()
        boundaries = trajectory.boundaries
        for k, (start, end) in reversed(list(enumerate(pairwise(boundaries)))):
            if k < len(jumps) - 1:
                adjoint = adjoint + jumps[k]
            for number, u in self._states_backwards(trajectory, start, end):
                adjoint = _reverse_round(trajectory, number, u, adjoint, sensitivity, lookout)
            sensitivity.close_stretch(k)
        if lookout is not None:
            trajectory.fail_where_seen(lookout)
        return adjoint

    def _states_backwards(self, trajectory: Trajectory, start: int, end: int) -> Iterator[tuple[int, Tensor]]:
        """(number, state before the round) from the last round of the stretch to its first."""
        kept = trajectory.snapshots.states

        def advance(number: int, u: Tensor) -> Tensor:
            return trajectory.rounds[number].advance(trajectory.tableau, u)

        while end > start:
            at = max(number for number in kept if number < end)
            state, first = kept[at], max(at, start)
            for number in range(at, first):
                state = advance(number, state)
            if self.checkpoints is None:
                yield from all_states_backwards(first, end, state, advance)
            else:
                yield from states_backwards(first, end, state, max(0, self.checkpoints - 1 - len(kept)), advance)
            if at >= start and at > 0:
                del kept[at]
            end = first


def _reverse_round(
    trajectory: Trajectory, number: int, u: Tensor, adjoint: Tensor, sensitivity: Sensitivity, lookout: Lookout | None
) -> Tensor:
    """The whole batch's λ [B, P] before the round from λ after it; u [B, P] is the state before it."""
    round_ = trajectory.rounds[number]
    field, rows = round_.field, round_.field.rows
    if rows is not None:
        u = u[rows]
    states = stage_states(field, trajectory.tableau, u, round_.h)
    visit = None if sensitivity.idle(field.proximal) else lambda v, seed: sensitivity.visit(field, v, seed)
    before = reverse(
        field.jacobian_transposed,
        trajectory.tableau,
        states,
        round_.h,
        adjoint if rows is None else adjoint[rows],
        visit,
        None if lookout is None else partial(lookout.see, field, number, round_.h),
    )
    return before if rows is None else adjoint.index_copy(0, rows, before)
