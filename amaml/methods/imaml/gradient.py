"""Implicit MAML (Rajeswaran, Finn, Kakade, Levine 2019): the gradient at the minimum of the proximal support loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amaml.flow.derivatives import Loss
from amaml.flow.field import GradientFlow
from amaml.flow.solvers import Solver
from amaml.methods.estimate import GradientEstimate
from amaml.methods.forward import estimate_without_adjoint
from amaml.methods.parameters import Params
from amaml.methods.problem import pose
from amaml.modes import plain_modes


@plain_modes()
def imaml(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    solver: Solver | None = None,
    proximal: float = 1.0,
    cg_steps: int = 5,
    damping: float = 0.0,
) -> GradientEstimate:
    """The estimate Σ w_k ((1 + damping) I + ∇²L_sup(u(T_k))/ρ)⁻¹ ∇L_qry(u(T_k)), by `cg_steps` conjugate-gradient steps
    (equation 7 and algorithm 2); arguments as in `meta_gradient`.

    It is exact for exact solutions of the systems if u(T) minimizes L_sup(u) + ½ρ‖u−θ‖². Raises ValueError unless ρ = `proximal`
    > 0.
    """
    if not proximal > 0:
        raise ValueError(f"proximal must be positive for imaml, got {proximal}: its linear system is I + ∇²L/ρ")
    problem, layout = pose(
        params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver, proximal=proximal
    )

    def implicit(flow: GradientFlow, ends: list[Tensor], jumps: list[Tensor]) -> Tensor:
        def system(u: Tensor, v: Tensor) -> Tensor:
            # flow.curvature is ∇²L + ρ, which divided by ρ already contains the identity.
            return flow.curvature(u, v) / proximal + damping * v

        solved = [
            _conjugate_gradients(lambda v, u=u: system(u, v), jump, cg_steps)  # type: ignore[misc]
            for u, jump in zip(ends, jumps, strict=True)
        ]
        return torch.stack(solved).sum(dim=0)

    return estimate_without_adjoint(problem, layout, implicit)


def _conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """An approximate solution x [B, P] of system(x) = b, symmetric positive definite for each task (Hestenes & Stiefel 1952)."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, size = residual.clone(), residual.square().sum(dim=1)
    for _ in range(steps):
        image = system(direction)
        curvature = (direction * image).sum(dim=1)
        going = size > 0  # a solved task has no direction left
        step = torch.where(going, size / curvature, 0.0)[:, None]
        x, residual = x + step * direction, residual - step * image
        following = residual.square().sum(dim=1)
        direction = residual + torch.where(going, following / size, 0.0)[:, None] * direction
        size = following
    return x
