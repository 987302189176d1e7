"""A family's objective: the losses that train and judge a network, and the metric that evaluations report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from amaml.flow.derivatives import Loss
from amaml.models.losses import classification_losses, regression_losses


@dataclass(frozen=True)
class Metric:
    """A score of predictions: one number for each task."""

    name: str
    """The beginning of the names of a job's metrics."""
    score: Callable[[Tensor, Tensor], Tensor]
    """(predicted, target), both [B, m, o] → [B], float64 on the CPU."""
    higher_is_better: bool = False

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other


@dataclass(frozen=True)
class Objective:
    name: str
    losses: Callable[[nn.Module], tuple[Loss, Loss]]
    """A network's support loss and query loss, functions of (params, task)."""
    metric: Metric
    """The score of a network's outputs at an evaluated task's `query_x` against its `query_y`."""


def nrmse(predicted: Tensor, target: Tensor) -> Tensor:
    """The root of the mean of (predicted − target)² over a task's points and outputs: [B, m, o] twice → [B]. Both are in units in
    which the training tasks' targets have mean 0 and standard deviation 1, so the constant 0 scores about 1."""
    return (predicted - target).double().square().mean(dim=(1, 2)).sqrt().cpu()


def accuracy(predicted: Tensor, target: Tensor) -> Tensor:
    """The fraction of a task's points whose largest output is that of their class: [B, m, o] twice → [B]; NaN for NaN outputs."""
    right = (predicted.argmax(dim=2) == target.argmax(dim=2)).double()
    known = predicted.isfinite().all(dim=2)
    return right.where(known, float("nan")).mean(dim=1).cpu()


NRMSE = Metric("nrmse", nrmse)
ACCURACY = Metric("accuracy", accuracy, higher_is_better=True)
REGRESSION = Objective("regression", regression_losses, NRMSE)
CLASSIFICATION = Objective("classification", classification_losses, ACCURACY)
BUILT_IN = {objective.name: objective for objective in (REGRESSION, CLASSIFICATION)}
