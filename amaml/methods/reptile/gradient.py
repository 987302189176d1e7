"""Reptile (Nichol, Achiam, Schulman 2018): θ moves towards the tasks' adapted parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amaml.flow.derivatives import Loss
from amaml.flow.solvers import Solver
from amaml.methods.estimate import GradientEstimate
from amaml.methods.forward import estimate_without_adjoint
from amaml.methods.parameters import Params
from amaml.methods.problem import pose
from amaml.modes import plain_modes


@plain_modes()
def reptile(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    solver: Solver | None = None,
) -> GradientEstimate:
    """The estimate Σ w_k (θ − u(T_k)); arguments as in `meta_gradient`. The query loss is reported but not differentiated."""
    problem, layout = pose(params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver)

    def way_back(ends: list[Tensor]) -> Tensor:
        weights = problem.theta.new_tensor(problem.weights)
        return (weights[:, None, None] * (problem.theta - torch.stack(ends))).sum(dim=0)

    return estimate_without_adjoint(problem, layout, lambda _flow, ends, _jumps: way_back(ends))
