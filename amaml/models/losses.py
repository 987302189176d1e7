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

    It is an object rather than a closure, so that the solvers can see which network and which rows it reads.
    """

    net: nn.Module
    rows: Rows

    @abstractmethod
    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """The loss, a scalar. `params` has the names of `net.named_parameters()`; `task` holds `{rows}_x` [n, d] and `{rows}_y`
        [n, o], and may hold `{rows}_mask` [n]."""

    def _predicted(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The network's predictions for the task's x [n, o], the task's y [n, o], and its mask [n] or None.

        Rows that the mask leaves out are set to zero in x and y, so that no value in them, not even NaN, reaches a derivative.
        Raises ValueError where the shapes of y and the predictions differ, since y would be broadcast.
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
    """The rows of one task [n, …], with zeros where the mask [n] is zero."""
    return torch.where(mask.bool().reshape(-1, *[1] * (leaf.ndim - 1)), leaf, torch.zeros_like(leaf))


def _mean(points: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over all points and outputs [n, …], or over those of the points for which the mask [n] is 1."""
    if mask is None:
        return points.mean()
    counted = mask.bool().sum() * (points.numel() // len(points))
    return _filled(points, mask).sum() / counted


@dataclass(frozen=True)
class RegressionLoss(NetworkLoss):
    """The loss ½ · mean((net(x) − y)²) of a task's support or query set, the mean over points and outputs. A mask `support_mask`
    or `query_mask` [n] in the task says which points count."""

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """The loss, a scalar; see `NetworkLoss.__call__`."""
        predicted, y, mask = self._predicted(params, task)
        return 0.5 * _mean((predicted - y).square(), mask)


@dataclass(frozen=True)
class ClassificationLoss(NetworkLoss):
    """The cross-entropy of softmax(net(x)) against y [n, o], one row of class probabilities for each point; the mean over points.
    A mask `support_mask` or `query_mask` [n] in the task says which points count."""

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """The loss, a scalar; see `NetworkLoss.__call__`."""
        logits, y, mask = self._predicted(params, task)
        return -_mean((y * log_softmax(logits, dim=-1)).sum(dim=-1), mask)


def losses_in_float64(support: Loss, query: Loss) -> tuple[Loss, Loss]:
    """The losses, with the own tensors of their networks (buffers, frozen parameters) in float64. Other losses stay unchanged."""
    copies: dict[int, nn.Module] = {}  # losses that share a network share its copy

    def doubled(loss: Loss) -> Loss:
        if not isinstance(loss, NetworkLoss):
            return loss
        if id(loss.net) not in copies:
            copies[id(loss.net)] = copied(loss.net).double()
        return replace(loss, net=copies[id(loss.net)])

    return doubled(support), doubled(query)


def regression_losses(net: nn.Module) -> tuple[RegressionLoss, RegressionLoss]:
    """The support loss and the query loss ½ · mean((net(x) − y)²) of a network, as functions of (params, task)."""
    return RegressionLoss(net, "support"), RegressionLoss(net, "query")


def classification_losses(net: nn.Module) -> tuple[ClassificationLoss, ClassificationLoss]:
    """The support loss and the query loss of a network with one output for each class: cross-entropy of (params, task)."""
    return ClassificationLoss(net, "support"), ClassificationLoss(net, "query")
