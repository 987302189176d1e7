"""Losses of a network on a task, as pure functions of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax

from amaml.flow.derivatives import Loss

Rows = Literal["support", "query"]


@dataclass(frozen=True)
class RegressionLoss:
    """½ · mean((net(x) − y)²) over a task's support or query set, the mean over points and outputs.

    An object rather than a closure, so that the solvers can see which network and which rows it reads.
    """

    net: nn.Module
    rows: Rows

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Tensor]) -> Tensor:
        """`params` as `net.named_parameters()` names them; `task` holds `support_x` [n, d], `support_y` [n, o]; scalar."""
        predicted = functional_call(self.net, dict(params), (task[f"{self.rows}_x"],))
        error: Tensor = predicted - _target(task, self.rows, predicted)
        return 0.5 * error.square().mean()


@dataclass(frozen=True)
class ClassificationLoss:
    """Cross-entropy of softmax(net(x)) against y [n, o], a row of class probabilities a point; the mean over points."""

    net: nn.Module
    rows: Rows

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Tensor]) -> Tensor:
        """As RegressionLoss."""
        logits = functional_call(self.net, dict(params), (task[f"{self.rows}_x"],))
        own: Tensor = _target(task, self.rows, logits) * log_softmax(logits, dim=-1)
        return -own.sum(dim=-1).mean()


def _target(task: Mapping[str, Tensor], rows: Rows, predicted: Tensor) -> Tensor:
    """The task's y; raises ValueError where it has another shape than the predictions, as which it would be broadcast."""
    y = task[f"{rows}_y"]
    if y.numel() == 0:
        raise ValueError(f"{rows}_y has shape {list(y.shape)} a task: a set needs at least one point")
    if y.shape != predicted.shape:
        raise ValueError(
            f"{rows}_y has shape {list(y.shape)} a task, but the network gives {list(predicted.shape)} for {rows}_x: they must "
            "be equal, [points, outputs]"
        )
    return y


def losses_in_float64(support: Loss, query: Loss) -> tuple[Loss, Loss]:
    """Losses of networks with the networks' own tensors (buffers, frozen parameters) in float64; any others as they are."""
    copies: dict[int, nn.Module] = {}  # one network stays one

    def doubled(loss: Loss) -> Loss:
        if not isinstance(loss, RegressionLoss | ClassificationLoss):
            return loss
        if id(loss.net) not in copies:
            try:
                copies[id(loss.net)] = copy.deepcopy(loss.net).double()
            except (
                RuntimeError
            ):  # it holds tensors that aren't leaves: it may do without a copy, if all it uses is in params
                copies[id(loss.net)] = loss.net
        return replace(loss, net=copies[id(loss.net)])

    return doubled(support), doubled(query)


def regression_losses(net: nn.Module) -> tuple[RegressionLoss, RegressionLoss]:
    """The support loss and the query loss of a network: ½ · mean squared error, functions of (params, task)."""
    return RegressionLoss(net, "support"), RegressionLoss(net, "query")


def classification_losses(net: nn.Module) -> tuple[ClassificationLoss, ClassificationLoss]:
    """The support loss and the query loss of a network whose outputs are a number a class: cross-entropy."""
    return ClassificationLoss(net, "support"), ClassificationLoss(net, "query")
