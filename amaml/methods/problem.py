"""The question that a meta-gradient answers, parameters flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amaml.adjoint.backsolve import Backsolve
from amaml.adjoint.discrete import Discrete
from amaml.adjoint.interpolated import Interpolated
from amaml.flow.derivatives import Derivatives
from amaml.flow.field import Evaluations, GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.solvers import FixedStep, Solver, TorchDiffEq

Adjoint = Discrete | Interpolated | Backsolve


@dataclass(frozen=True)
class Problem:
    """J(θ) = Σ_k weights_k · L_qry(u(horizons_k)) for each of `batch` tasks, and how to solve it."""

    derivatives: Derivatives
    theta: Tensor
    batch: int
    horizons: list[float]
    weights: list[float]
    solver: Solver
    adjoint: Adjoint
    rates: Tensor | None
    proximal: float
    proximal_in_query: bool

    @property
    def target(self) -> Literal["flow", "discrete"]:
        """See `Stats.target`."""
        fixed = isinstance(self.solver, FixedStep) or (
            isinstance(self.solver, TorchDiffEq) and self.solver.step is not None
        )
        return "discrete" if fixed and isinstance(self.adjoint, Discrete) else "flow"

    def flow(self) -> GradientFlow:
        """The inner flow, nothing counted yet."""
        gradients, hvps = torch.zeros(2, self.batch, dtype=torch.int64, device=self.theta.device)
        return GradientFlow(
            self.derivatives, self.theta, Evaluations(gradients, hvps), rates=self.rates, proximal=self.proximal
        )

    def judge(self, k: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At u(T_k) [B, P]: the query loss [B], its weighted gradient, by which λ jumps [B, P], and what θ gets directly,
        through ½ρ‖u−θ‖² in the query loss [B, P] (a zero where that isn't asked for)."""
        weight = self.weights[k]
        loss, gradient = self.derivatives.query(u)
        direct = torch.zeros_like(self.theta)
        if self.proximal and self.proximal_in_query:
            away = u - self.theta
            loss = loss + 0.5 * self.proximal * away.square().sum(dim=1)
            gradient = gradient + self.proximal * away
            direct = -weight * self.proximal * away
        raise_where(~(loss.isfinite() & gradient.isfinite().all(dim=1)), Result.NON_FINITE, self.horizons[k])
        return loss, weight * gradient, direct
