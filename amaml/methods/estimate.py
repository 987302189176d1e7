"""The result of every meta-gradient estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from amaml.flow.field import Evaluations
from amaml.flow.trajectory import Solution


@dataclass(frozen=True)
class Stats:
    """The statistics of a solve, one value for each task [B]."""

    steps: Tensor
    """The number of accepted forward steps; −1 where torchdiffeq doesn't report it."""
    rejected: Tensor
    gradients: Tensor
    """The number of evaluations of ∇L_sup, forward and backward, including those for the first step's size and the guard."""
    hvps: Tensor
    lambda_max: Tensor
    """The largest estimate of the Hessian's largest eigenvalue along the trajectory: the guard's, by power iteration, or without
    a guard a lower bound from the rate at which λ changed. NaN where there was neither."""
    target: Literal["flow", "discrete"]
    """What the gradient differentiates: the flow itself, to tolerance, or exactly the discrete map of a fixed-step solver."""

    @classmethod
    def of(cls, solution: Solution, evaluations: Evaluations, target: Literal["flow", "discrete"]) -> Stats:
        """The statistics of a forward solve with the counts of all evaluations, forward and backward."""
        return cls(
            solution.steps, solution.rejected, evaluations.gradients, evaluations.hvps, solution.lambda_max, target
        )


@dataclass
class GradientEstimate:
    """An estimate of dJ/dθ on a batch of tasks. All of its tensors are detached."""

    grad: Any
    """The estimate's mean over tasks, like `params`."""
    per_task: Any
    """Each task's own estimate: like `params` with a first axis B."""
    loss: Tensor
    """The query losses at T [B]; with several horizons, their weighted sum."""
    adapted: Any
    """u(T), the state at the last horizon: like `params` with a first axis B."""
    stats: Stats
