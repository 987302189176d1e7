"""Losses of a network on a task, as pure functions of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax
from torch.utils._pytree import tree_map

from amaml.flow.derivatives import Loss
from amaml.models.private import copied

Rows = Literal["support", "query"]


@dataclass(frozen=True)
class NetworkLoss(ABC):
    """A loss of a network on a task's support or query set.

    An object rather than a closure, so that the solvers can see which network and which rows it reads.
    """

    net: nn.Module
    rows: Rows

    @abstractmethod
    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """`params` as `net.named_parameters()` names them; `task` holds `support_x` [n, d], `support_y` [n, o]; scalar."""

    def _predicted(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the network gives for the task's x, the task's y of the same shape [n, o], and its mask [n, 1], or None.

        Rows that the mask leaves out are zero in x and y, so that whatever stood there, NaN too, reaches no derivative.
        Raises ValueError where y has another shape than the predictions, as which it would be broadcast.
        """
        x, y, mask = (task.get(f"{self.rows}_{kind}") for kind in ("x", "y", "mask"))
        if mask is not None:
            x, y = tree_map(lambda leaf: _filled(leaf, mask), (x, y))
        predicted = functional_call(self.net, dict(params), (x,))
        if not isinstance(predicted, Tensor):
            raise ValueError(  # noqa: TRY004 - a wrong value of the caller's network
                f"the network returned a {type(predicted).__name__}: its losses need one tensor [points, outputs]"
            )
        assert isinstance(y, Tensor)
        if y.numel() == 0:
            raise ValueError(f"{self.rows}_y has shape {list(y.shape)} a task: a set needs at least one point")
        if y.shape != predicted.shape:
            raise ValueError(
                f"{self.rows}_y has shape {list(y.shape)} a task, but the network gives {list(predicted.shape)} for "
                f"{self.rows}_x: they must be equal, [points, outputs]"
            )
        return predicted, y, mask


def _filled(leaf: Tensor, mask: Tensor) -> Tensor:
    """The rows of one task [n, …] with zeros where the mask [n] is."""
    return torch.where(mask.bool().reshape(-1, *[1] * (leaf.ndim - 1)), leaf, torch.zeros_like(leaf))


def _mean(points: Tensor, mask: Tensor | None) -> Tensor:
    """Over all points and outputs [n, …], or those points that the mask [n] counts."""
    if mask is None:
        return points.mean()
    counted = mask.bool().sum() * (points.numel() // len(points))
    return _filled(points, mask).sum() / counted


@dataclass(frozen=True)
class RegressionLoss(NetworkLoss):
    """½ · mean((net(x) − y)²) over a task's support or query set, the mean over points and outputs. A mask `support_mask` or
    `query_mask` [n] in the task says which points count."""

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """As NetworkLoss."""
        predicted, y, mask = self._predicted(params, task)
        return 0.5 * _mean((predicted - y).square(), mask)


@dataclass(frozen=True)
class ClassificationLoss(NetworkLoss):
    """Cross-entropy of softmax(net(x)) against y [n, o], a row of class probabilities a point; the mean over points, those that
    `support_mask` or `query_mask` [n] counts where the task has one."""

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """As NetworkLoss."""
        logits, y, mask = self._predicted(params, task)
        return -_mean((y * log_softmax(logits, dim=-1)).sum(dim=-1), mask)


def losses_in_float64(support: Loss, query: Loss) -> tuple[Loss, Loss]:
    """Losses of networks with the networks' own tensors (buffers, frozen parameters) in float64; any others as they are."""
    copies: dict[int, nn.Module] = {}  # one network stays one

    def doubled(loss: Loss) -> Loss:
        if not isinstance(loss, NetworkLoss):
            return loss
        if id(loss.net) not in copies:
            copies[id(loss.net)] = copied(loss.net).double()
        return replace(loss, net=copies[id(loss.net)])

    return doubled(support), doubled(query)


def regression_losses(net: nn.Module) -> tuple[RegressionLoss, RegressionLoss]:
    """The support loss and the query loss of a network: ½ · mean squared error, functions of (params, task)."""
    return RegressionLoss(net, "support"), RegressionLoss(net, "query")


def classification_losses(net: nn.Module) -> tuple[ClassificationLoss, ClassificationLoss]:
    """The support loss and the query loss of a network whose outputs are a number a class: cross-entropy."""
    return ClassificationLoss(net, "support"), ClassificationLoss(net, "query")
