"""First-order MAML (Finn, Abbeel, Levine 2017, section 5.2): the meta-gradient with du(T)/dθ replaced by the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amaml.flow.derivatives import Loss
from amaml.flow.solvers import Solver
from amaml.methods.estimate import GradientEstimate
from amaml.methods.forward import estimate_without_adjoint
from amaml.methods.parameters import Params
from amaml.methods.problem import pose
from amaml.modes import plain_modes


@plain_modes()
def fomaml(
    params: Params,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    *,
    length: float | None = None,
    horizons: Sequence[tuple[float, float]] | None = None,
    solver: Solver | None = None,
) -> GradientEstimate:
    """The estimate Σ w_k ∇L_qry(u(T_k)), for the cost of the forward solve; arguments as in `meta_gradient`."""
    problem, layout = pose(params, support_loss, query_loss, tasks, length=length, horizons=horizons, solver=solver)
    return estimate_without_adjoint(problem, layout, lambda _flow, _ends, jumps: torch.stack(jumps).sum(dim=0))
