"""A family's objective: the losses that train and judge a network, and the metric that evaluations report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from amaml import metrics
from amaml.flow.derivatives import Loss
from amaml.models.losses import classification_losses, regression_losses


@dataclass(frozen=True)
class Metric:
    """A score of predictions: one number for each task."""

    name: str
    """The prefix of the names of a job's metrics."""
    score: Callable[[Tensor, Tensor], Tensor]
    """The function (predicted, target), both [B, m, o] → [B], float64 on the CPU."""
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
    """The normalised root mean square error of each task, over its points and outputs: two tensors [B, m, o] → [B]. The training
    tasks' targets have mean 0 and standard deviation 1 in the units of both, so the constant prediction 0 scores about 1."""
    return (predicted - target).double().square().mean(dim=(1, 2)).sqrt().cpu()


def accuracy(predicted: Tensor, target: Tensor) -> Tensor:
    """The fraction of each task's points whose largest output is that of their class: two tensors [B, m, o] → [B]. It is NaN
    where an output is infinite or NaN."""
    right = (predicted.argmax(dim=2) == target.argmax(dim=2)).double()
    known = predicted.isfinite().all(dim=2)
    return right.where(known, float("nan")).mean(dim=1).cpu()


def _declared(name: str, score: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    return Metric(name, score, higher_is_better=not metrics.SCORED_BY[name].lower_is_better)


NRMSE = _declared(metrics.NRMSE, nrmse)
ACCURACY = _declared(metrics.ACCURACY, accuracy)
REGRESSION = Objective("regression", regression_losses, NRMSE)
CLASSIFICATION = Objective("classification", classification_losses, ACCURACY)
BUILT_IN = {objective.name: objective for objective in (REGRESSION, CLASSIFICATION)}
