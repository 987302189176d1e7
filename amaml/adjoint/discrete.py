"""The discrete adjoint: the exact reverse of the accepted forward steps and their stages, with step sizes held constant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from amaml.adjoint import checkpointing
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.guard import ReverseGuard
from amaml.flow.runge_kutta import reverse, stage_states
from amaml.flow.snapshots import Snapshots
from amaml.flow.trajectory import Trajectory


@dataclass(frozen=True)
class Discrete:
    """Equals backpropagation through the solver up to rounding, without an autograd graph.

    `checkpoints=None` keeps all states while they take little memory. Beyond that it keeps about √N states of the forward solve
    and recomputes the others once, one interval between two kept states at a time: for N fixed steps, about √(2N) states are
    alive at once. `checkpoints=k` has at most k states alive (at least two: the first and the current one), and recomputes as
    often as the binomial schedule requires.
    """

    checkpoints: int | None = None
    controlled: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checkpointing.require_checkpoints(self.checkpoints)

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        return checkpointing.snapshots(self.checkpoints, rounds, 1, state_bytes)

    def vjp(
        self, field: GradientFlow, solution: Trajectory, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        adjoint, guard = cotangents[-1], _reverse_guard(solution)
        for k, segments in solution.between_horizons():
            if k < len(cotangents) - 1:
                adjoint = adjoint + cotangents[k]
            for number, u in checkpointing.segments_backwards(solution, segments, self.checkpoints):
                adjoint = _reverse_round(solution, number, u, adjoint, sensitivity, guard)
            sensitivity.close_interval(k)
        if guard is not None:
            guard.fail_where_unstable(solution)
        return adjoint


def _reverse_guard(trajectory: Trajectory) -> ReverseGuard | None:
    """The guard of the reverse steps; None where the forward solve had no guard."""
    if bool(trajectory.lambda_max.isnan().any()):
        return None
    return ReverseGuard(trajectory.ends[-1], trajectory.tableau, fixed=isinstance(trajectory.rounds[0].h, float))


def _reverse_round(
    trajectory: Trajectory,
    number: int,
    u: Tensor,
    adjoint: Tensor,
    sensitivity: Sensitivity,
    guard: ReverseGuard | None,
) -> Tensor:
    """The whole batch's λ [B, P] before the round from λ after it; u [B, P] is the state before the round."""
    round_ = trajectory.rounds[number]
    field, rows = round_.field, round_.field.rows
    if rows is not None:
        u = u[rows]
    states = stage_states(field, trajectory.tableau, u, round_.h)
    visit = None if sensitivity.idle else partial(sensitivity.visit, field)
    before = reverse(
        field.jacobian_transposed,
        trajectory.tableau,
        states,
        round_.h,
        adjoint if rows is None else adjoint[rows],
        visit,
        None if guard is None else partial(guard.observe, field, number, round_.h),
    )
    return before if rows is None else adjoint.index_copy(0, rows, before)
