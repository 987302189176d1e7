"""The adjoint of constant memory: u re-integrated backwards beside λ (torchdiffeq's odeint_adjoint does the same).

A contracting flow grows without bound in reverse, so this breaks at λmax·T of about ln(1/tol). It is here for
comparison, and it must notice: u has to come back to where it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from amaml.adjoint.interpolated import sizes
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.control import Attempt, integrate
from amaml.flow.field import GradientFlow
from amaml.flow.result import Failure, Result, SolveError, raise_where
from amaml.flow.runge_kutta import weights
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import Trajectory
from amaml.flow.solvers import Adaptive

DRIFT_LIMIT = 1000.0
"""How far u may miss the state it must come back to, in units of the tolerance (root mean square)."""
LARGEST_DRIFT = 1e-3
"""The same in units of 1 + |u|: loose tolerances allow no more, since λ is off by several times as much."""


@dataclass(frozen=True)
class Backsolve:
    """Fails with a sentence where u doesn't come back to within 1000 times the tolerance (and a thousandth), or where the way
    back takes more than `max_evaluations` gradients a task."""

    max_evaluations: int = 20_000

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations must be at least 1, got {self.max_evaluations}")

    def snapshots(self, rounds: int | None) -> Snapshots:
        """None: constant memory."""
        return Snapshots(limit=1)

    def solve(
        self,
        field: GradientFlow,
        trajectory: Trajectory,
        jumps: list[Tensor],
        sensitivity: Sensitivity,
        solver: Adaptive,
    ) -> Tensor:
        """λ(0) [B, P]; λ jumps by `jumps[k]` at the k-th horizon, where u starts afresh from the stored u(T_k)."""
        adjoint = torch.zeros_like(jumps[-1])
        starts = [field.theta.expand_as(adjoint), *trajectory.ends[:-1]]
        budget = replace(solver, max_steps=max(1, self.max_evaluations // (solver.tableau.stages)))
        limit = min(DRIFT_LIMIT, LARGEST_DRIFT / max(solver.rtol, solver.atol))
        for k, (start, end) in reversed(list(enumerate(pairwise([0.0, *trajectory.horizons])))):
            unit = sizes(adjoint + jumps[k])
            both = torch.cat([trajectory.ends[k], (adjoint + jumps[k]) / unit], dim=1)
            try:
                both, _ = integrate(ReversedFlow(field, solver, sensitivity, unit), both, 0.0, end - start, budget)
            except SolveError as error:
                raise SolveError([self._in_forward_time(failure, end) for failure in error.failures]) from error
            u, adjoint = both.chunk(2, dim=1)
            adjoint = adjoint * unit
            scale = solver.atol + solver.rtol * starts[k].abs()
            drift = ((u - starts[k]) / scale).square().mean(dim=1).sqrt()
            raise_where(~(drift <= limit), Result.DRIFTED, start, value=drift, bound=limit)
        return adjoint

    def _in_forward_time(self, failure: Failure, end: float) -> Failure:
        if failure.code is Result.BUDGET_SPENT:
            return replace(failure, time=end - failure.time, bound=float(self.max_evaluations), unit="gradients")
        return replace(failure, time=end - failure.time)


class ReversedFlow:
    """In s = T − t: du/ds = −f(u), dλ/ds = (∂f/∂u)ᵀ λ, side by side as [A, 2P], λ in the given units [A, 1]."""

    def __init__(self, field: GradientFlow, solver: Adaptive, sensitivity: Sensitivity, unit: Tensor) -> None:
        self.field, self.solver, self.sensitivity, self.unit = field, solver, sensitivity, unit

    def take(self, rows: Tensor) -> ReversedFlow:
        return ReversedFlow(self.field.take(rows), self.solver, self.sensitivity, self.unit[rows])

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        u, adjoint = y.chunk(2, dim=1)
        return torch.cat([self.field(u).neg_(), self.field.jacobian_transposed(u, adjoint)], dim=1)

    def longest_step(self, t: Tensor) -> Tensor | None:
        return None

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        return good

    def observe(self, step: Attempt) -> None:
        if self.sensitivity.idle(self.field.proximal):
            return
        tableau = self.solver.tableau
        for weight, fraction, state in zip(weights(tableau, step.y).b, tableau.b, step.states, strict=True):
            if fraction:
                u, adjoint = state.chunk(2, dim=1)
                self.sensitivity.visit(self.field, u, weight * step.column * self.unit * adjoint)
