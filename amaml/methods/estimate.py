"""What every meta-gradient estimator gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from amaml.flow.field import Evaluations
from amaml.flow.trajectory import Solution


@dataclass(frozen=True)
class Stats:
    """What a solve did, a value a task [B]."""

    steps: Tensor
    """Accepted forward steps; −1 where torchdiffeq doesn't tell."""
    rejected: Tensor
    gradients: Tensor
    """Evaluations of ∇L_sup, forward and backward, first step and guard included."""
    hvps: Tensor
    lambda_max: Tensor
    """Largest estimate of the Hessian's largest eigenvalue along the way: the guard's by power iteration, or without the guard,
    from below, how fast λ changed; NaN where there was neither."""
    target: Literal["flow", "discrete"]
    """What the gradient is of: the flow itself, to tolerance, or exactly the discrete map of a fixed-step solver."""

    @classmethod
    def of(cls, solution: Solution, evaluations: Evaluations, target: Literal["flow", "discrete"]) -> Stats:
        """Of a forward solve and all that was evaluated."""
        return cls(
            solution.steps, solution.rejected, evaluations.gradients, evaluations.hvps, solution.lambda_max, target
        )


@dataclass
class GradientEstimate:
    """An estimate of dJ/dθ on a batch of tasks, detached."""

    grad: Any
    """Like `params`: the mean over tasks."""
    per_task: Any
    """The same for each task: like `params` with a first axis B."""
    loss: Tensor
    """Query losses at T [B]; over several horizons their weighted sum."""
    adapted: Any
    """u(T) (the last horizon's), like `params` with a first axis B."""
    stats: Stats
