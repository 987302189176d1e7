"""The paper's adjoint: the adjoint ODE, solved with its own steps over the stored forward trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from amaml.adjoint import checkpointing
from amaml.adjoint.equation import AdjointEquation, failures_in_forward_time
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.control import Attempt, Integration
from amaml.flow.dense import DenseOutput, Interpolant
from amaml.flow.field import GradientFlow
from amaml.flow.snapshots import Snapshots
from amaml.flow.tableau import DOPRI5
from amaml.flow.trajectory import Round, Trajectory

SEGMENT = 16
"""The number of rounds of forward steps whose dense output is in memory at a time. The adjoint's steps end at the segment's end,
so that they don't depend on how many states are kept; that costs about half a step for each segment."""
MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Interpolated:
    """Solves dλ/dt = (∇²L_sup(u(t)) + ρ)(α∘λ) from T to 0, with u(t) from the dense output of the forward solve.

    `scheme` "adaptive" uses the forward solver's method and tolerance with error control on λ (Dormand–Prince at 1e-6 after a
    fixed-step solver); "heun" and "euler" step on the forward grid, as the paper's slides and its released code do. `checkpoints`
    is the number of states kept, as in `Discrete`, in addition to the dense output of 16 steps; the bits of the gradient don't
    depend on it.
    """

    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"
    checkpoints: int | None = None
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.scheme not in ("adaptive", "heun", "euler"):
            raise ValueError(f"scheme {self.scheme!r} is unknown: choose 'adaptive', 'heun' or 'euler'")
        checkpointing.require_checkpoints(self.checkpoints)

    @property
    def controlled(self) -> bool:
        return self.scheme == "adaptive"

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        return checkpointing.snapshots(self.checkpoints, rounds, SEGMENT, state_bytes)

    def vjp(
        self, field: GradientFlow, solution: Trajectory, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        if self.scheme != "adaptive":
            return self._on_the_forward_grid(solution, cotangents, sensitivity)
        with failures_in_forward_time(solution.horizons[-1]):
            return self._adaptive(field, solution, cotangents, sensitivity, rtol)

    def _backwards(self, solution: Trajectory, segments: range) -> Iterator[tuple[int, DenseOutput]]:
        for number, u in checkpointing.segments_backwards(solution, segments, self.checkpoints):
            yield number, DenseOutput(solution, number, u)

    def _adaptive(
        self, field: GradientFlow, solution: Trajectory, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        equation = AdjointEquation(field, sensitivity, rtol, solution.lambda_max)
        tableau = solution.tableau if solution.tableau.error else DOPRI5
        length, jump = solution.horizons[-1], torch.zeros_like(sensitivity.total)
        integration: Integration | None = None
        for k, segments in solution.between_horizons():
            change = torch.cat([cotangents[k], jump], dim=1)
            for at, (number, dense) in enumerate(self._backwards(solution, segments)):
                start, end = solution.interval(number)
                problem = AdjointFlow(field, equation, Interpolant(dense), length)
                if integration is None:
                    integration = Integration(problem, tableau, length - end, change, max_steps=MAX_STEPS, span=length)
                else:
                    integration.problem = problem
                    if at == 0:
                        integration.jump(change)
                integration.to(length - start)
        assert integration is not None
        adjoint, sensitivity.total = equation.split(integration.y)
        return adjoint

    def _on_the_forward_grid(self, solution: Trajectory, cotangents: list[Tensor], sensitivity: Sensitivity) -> Tensor:
        adjoint = torch.zeros_like(cotangents[-1])
        for k, segments in solution.between_horizons():
            adjoint = adjoint + cotangents[k]
            for _, dense in self._backwards(solution, segments):
                for at in reversed(range(len(dense.rounds))):
                    before, after = dense.states[at : at + 2]
                    adjoint = self._grid_step(dense.rounds[at], adjoint, before, after, dense.steps[at], sensitivity)
        return adjoint

    def _grid_step(
        self, round_: Round, adjoint: Tensor, before: Tensor, after: Tensor, steps: Tensor, sensitivity: Sensitivity
    ) -> Tensor:
        """λ [B, P] at the start of a step from λ at its end; the step sizes `steps` [B] are 0 for tasks that didn't take it."""
        field = round_.field
        rows = field.rows if field.rows is not None else slice(None)
        u0, u1, lam, h = before[rows], after[rows], adjoint[rows], steps[rows].to(adjoint.dtype)[:, None]
        first = field.jacobian_transposed(u1, lam)
        if self.scheme == "euler":
            visits, change = [(u1, h * lam)], h * first
        else:
            ahead = lam + h * first
            visits = [(u1, 0.5 * h * lam), (u0, 0.5 * h * ahead)]
            change = 0.5 * h * (first + field.jacobian_transposed(u0, ahead))
        if not sensitivity.idle:
            for u, weighted in visits:
                sensitivity.visit(field, u, weighted)
        return adjoint + change if field.rows is None else adjoint.index_add(0, field.rows, change)


class AdjointFlow:
    """The adjoint equation over one segment as an initial value problem in reversed time s = T − t."""

    def __init__(self, field: GradientFlow, equation: AdjointEquation, interpolant: Interpolant, length: float) -> None:
        self.field, self.equation, self.interpolant, self.length = field, equation, interpolant, length

    def take(self, rows: Tensor) -> AdjointFlow:
        return AdjointFlow(self.field.take(rows), self.equation, self.interpolant, self.length)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        rows = self.field.rows if self.field.rows is not None else torch.arange(len(t), device=t.device)
        return self.equation.slope(self.field, self.interpolant(self.length - t, rows), y)

    def over_tolerance(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return self.equation.over_tolerance(self.field, error, before, after)

    def longest_step(self, t: Tensor) -> Tensor | None:
        return None

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        return good

    def observe(self, step: Attempt) -> None:
        self.equation.accept(self.field, step.states[0], step.y_new, step.slopes[0], step.h > 0)
