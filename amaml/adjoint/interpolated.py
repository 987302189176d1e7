"""The paper's adjoint: the adjoint ODE solved on its own over the stored forward trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.control import Attempt, integrate
from amaml.flow.dense import Interpolant
from amaml.flow.field import GradientFlow
from amaml.flow.runge_kutta import weights
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import Trajectory
from amaml.flow.solvers import Adaptive, Dopri5
from amaml.flow.tableau import Tableau


@dataclass(frozen=True)
class Interpolated:
    """dλ/dt = (∇²L_sup(u(t)) + ρ)(α∘λ) from T to 0, over dense output of the forward solve (all of it kept).

    `adaptive`: by the forward solver's tolerances with error control on λ (Dormand–Prince at 1e-6 after a fixed-step
    solver); `heun`: on the forward grid, the scheme of the paper's slides; `euler`: on the forward grid, that of its
    released code.
    """

    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"

    def __post_init__(self) -> None:
        if self.scheme not in ("adaptive", "heun", "euler"):
            raise ValueError(f"scheme {self.scheme!r} is unknown: choose adaptive, heun or euler")

    def snapshots(self, rounds: int | None) -> Snapshots:
        """None beside the dense output."""
        return Snapshots(limit=1)

    def solve(
        self,
        field: GradientFlow,
        trajectory: Trajectory,
        jumps: list[Tensor],
        sensitivity: Sensitivity,
        solver: Adaptive,
    ) -> Tensor:
        """λ(0) [B, P]; λ jumps by `jumps[k]` at the k-th horizon."""
        assert trajectory.dense is not None
        if self.scheme != "adaptive":
            return self._on_the_forward_grid(trajectory, jumps, sensitivity)
        interpolant = Interpolant(trajectory.dense, trajectory.ends[-1])
        adjoint, h = torch.zeros_like(jumps[-1]), None
        for (start, end), jump in reversed(list(zip(pairwise([0.0, *trajectory.horizons]), jumps, strict=True))):
            unit = sizes(adjoint + jump)
            problem = AdjointFlow(field, interpolant, trajectory.tableau, solver.tableau, end, sensitivity, unit)
            adjoint, h = integrate(problem, (adjoint + jump) / unit, 0.0, end - start, solver, h)
            adjoint = adjoint * unit
        return adjoint

    def _on_the_forward_grid(self, trajectory: Trajectory, jumps: list[Tensor], sensitivity: Sensitivity) -> Tensor:
        dense = trajectory.dense
        assert dense is not None
        adjoint, after = torch.zeros_like(jumps[-1]), trajectory.ends[-1]
        for (start, end), jump in reversed(list(zip(pairwise(trajectory.boundaries), jumps, strict=True))):
            adjoint = adjoint + jump
            for number in reversed(range(start, end)):
                before = dense.states[number]
                adjoint = self._grid_step(
                    trajectory.rounds[number].field, adjoint, before, after, dense.steps[number], sensitivity
                )
                after = before
        return adjoint

    def _grid_step(
        self,
        field: GradientFlow,
        adjoint: Tensor,
        before: Tensor,
        after: Tensor,
        steps: Tensor,
        sensitivity: Sensitivity,
    ) -> Tensor:
        """λ [B, P] at a step's start from λ at its end; `steps` [B] is 0 for tasks that didn't take it."""
        rows = field.rows if field.rows is not None else slice(None)
        u0, u1, lam, h = before[rows], after[rows], adjoint[rows], steps[rows].to(adjoint.dtype)[:, None]
        first = field.jacobian_transposed(u1, lam)
        if self.scheme == "euler":
            visits, change = [(u1, h * lam)], h * first
        else:
            ahead = lam + h * first
            visits = [(u1, 0.5 * h * lam), (u0, 0.5 * h * ahead)]
            change = 0.5 * h * (first + field.jacobian_transposed(u0, ahead))
        if not sensitivity.idle(field.proximal):
            for u, weighted in visits:
                sensitivity.visit(field, u, weighted)
        return adjoint + change if field.rows is None else adjoint.index_add(0, field.rows, change)


def sizes(adjoint: Tensor) -> Tensor:
    """The largest |λ_i| of each row [B, 1], 1 where λ is zero. The adjoint ODE is linear: in this unit of λ a tolerance means
    the same however small a query loss, its weight or a gradient is."""
    largest = adjoint.abs().amax(dim=1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def tolerances(solver: object) -> Adaptive:
    """The adaptive solver of an adjoint ODE that follows this forward solver."""
    return solver if isinstance(solver, Adaptive) else Dopri5()


class AdjointFlow:
    """The terminal value problem in reversed time s = T − t: dλ/ds = (∂f/∂u(u(T−s)))ᵀ λ, λ in the given units [A, 1]."""

    def __init__(
        self,
        field: GradientFlow,
        interpolant: Interpolant,
        forward: Tableau,
        tableau: Tableau,
        end: float,
        sensitivity: Sensitivity,
        unit: Tensor,
    ) -> None:
        self.field, self.interpolant, self.forward, self.tableau = field, interpolant, forward, tableau
        self.end, self.sensitivity, self.unit = end, sensitivity, unit

    def take(self, rows: Tensor) -> AdjointFlow:
        return AdjointFlow(
            self.field.take(rows),
            self.interpolant,
            self.forward,
            self.tableau,
            self.end,
            self.sensitivity,
            self.unit[rows],
        )

    def _rows(self, s: Tensor) -> Tensor:
        return self.field.rows if self.field.rows is not None else torch.arange(len(s), device=s.device)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field.jacobian_transposed(self.interpolant(self.end - t, self._rows(t)), y)

    def longest_step(self, t: Tensor) -> Tensor | None:
        """The forward guard's estimate caps these steps too: λ feels the same stiffness."""
        lambda_max = self.interpolant.lambda_max(self.end - t, self._rows(t))
        return None if lambda_max is None else self.tableau.guard / lambda_max.double()

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        return good

    def observe(self, step: Attempt) -> None:
        """The quadratures ∫…λ dt, by the step's own weights at its own stages."""
        if self.sensitivity.idle(self.field.proximal):
            return
        rows = self._rows(step.t)
        for i, weight in enumerate(weights(self.tableau, step.y).b):
            if self.tableau.b[i]:
                u = self.interpolant(self.end - (step.t + self.tableau.c[i] * step.h), rows)
                self.sensitivity.visit(self.field, u, weight * step.column * self.unit * step.states[i])
