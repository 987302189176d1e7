"""The adjoint in constant memory: u is integrated backwards together with λ, as in torchdiffeq's odeint_adjoint.

Errors of a contracting flow grow without bound in reverse, so this fails at λmax·T of about ln(1/tol). It is here for comparison,
and it detects its failure: u has to return to the state from which it started.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from amaml.adjoint.equation import AdjointEquation, failures_in_forward_time
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.control import Attempt, Integration
from amaml.flow.field import GradientFlow
from amaml.flow.result import Failure, Result, SolveError, raise_where
from amaml.flow.snapshots import Snapshots, nothing_kept
from amaml.flow.solve import state_over_tolerance
from amaml.flow.tableau import DOPRI5
from amaml.flow.trajectory import Trajectory

DRIFT_LIMIT = 1000.0
"""The largest allowed distance (root mean square) of u from the state to which it must return, in units of the tolerance."""
LARGEST_DRIFT = 1e-3
"""The same relative to the parameters' sizes, which bounds the drift under loose tolerances: λ's error is several times
larger."""


@dataclass(frozen=True)
class Backsolve:
    """The adjoint by integrating u backwards. Raises SolveError where u doesn't return to within 1000 times the tolerance (and to
    within a thousandth), or where the backward solve takes more than `max_evaluations` gradients for a task."""

    max_evaluations: int = 20_000
    controlled: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations must be at least 1, got {self.max_evaluations}")

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        return nothing_kept()

    def vjp(
        self, field: GradientFlow, solution: Trajectory, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        """See `Adjoint.vjp`. At every horizon u starts anew from the stored u(T_k)."""
        equation = AdjointEquation(field, sensitivity, rtol, solution.lambda_max)
        problem = ReversedFlow(field, equation)
        adjoint = torch.zeros_like(cotangents[-1])
        starts = [field.theta.expand_as(adjoint), *solution.ends[:-1]]
        for k, (start, end) in reversed(list(enumerate(pairwise([0.0, *solution.horizons])))):
            state = torch.cat([solution.ends[k], equation.state(adjoint + cotangents[k])], dim=1)
            u, state = problem.split(self._back(problem, solution, state, end, start))
            adjoint, sensitivity.total = equation.split(state)
            limit = min(DRIFT_LIMIT, LARGEST_DRIFT / rtol)
            drift = ((u - starts[k]) / (rtol * (starts[k].abs() + field.scales))).square().mean(dim=1).sqrt()
            raise_where(~(drift <= limit), Result.DRIFTED, start, value=drift, bound=limit)
        return adjoint

    def _back(self, problem: ReversedFlow, solution: Trajectory, state: Tensor, end: float, start: float) -> Tensor:
        tableau = solution.tableau if solution.tableau.error else DOPRI5
        t = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        budget = max(1, self.max_evaluations // tableau.stages)
        try:
            with failures_in_forward_time(end):
                integration = Integration(problem, tableau, t, state, max_steps=budget, span=end - start)
                return integration.to(torch.full_like(t, end - start))
        except SolveError as error:
            raise SolveError([self._in_gradients(failure) for failure in error.failures]) from error

    def _in_gradients(self, failure: Failure) -> Failure:
        """The failure with a spent budget given in gradients, which is what `max_evaluations` counts."""
        spent = failure.code is Result.BUDGET_SPENT
        return replace(failure, bound=float(self.max_evaluations), unit="gradients") if spent else failure


class ReversedFlow:
    """The problem in reversed time s = T − t: du/ds = −f(u) and dλ/ds = (∂f/∂u)ᵀ λ, as one state [A, P + P + Q]."""

    def __init__(self, field: GradientFlow, equation: AdjointEquation) -> None:
        self.field, self.equation = field, equation

    def take(self, rows: Tensor) -> ReversedFlow:
        return ReversedFlow(self.field.take(rows), self.equation)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """u and the state of the adjoint equation."""
        parameters = len(self.field.theta)
        return y[:, :parameters], y[:, parameters:]

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        u, state = self.split(y)
        return torch.cat([self.field(u).neg_(), self.equation.slope(self.field, u, state)], dim=1)

    def over_tolerance(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        (of_u, of_state), (u, state), (end, end_state) = self.split(error), self.split(before), self.split(after)
        rtol = self.equation.rtol
        return torch.maximum(
            state_over_tolerance(of_u, u, end, rtol, rtol * self.field.scales),
            self.equation.over_tolerance(self.field, of_state, state, end_state),
        )

    def longest_step(self, t: Tensor) -> Tensor | None:
        return None

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        return good

    def observe(self, step: Attempt) -> None:
        state, end, slope = (self.split(v)[1] for v in (step.states[0], step.y_new, step.slopes[0]))
        self.equation.accept(self.field, state, end, slope, step.h > 0)
