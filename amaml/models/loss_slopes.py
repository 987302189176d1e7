"""The losses of `losses` as functions of a network's outputs, with first and second derivatives, for all tasks at once.

Outputs and y are [B, n, o]. `share` [B, n, 1] is the weight of each point: one over the number of points that count, and 0 for
those that a mask leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn.functional import log_softmax

from amaml.models.losses import ClassificationLoss, NetworkLoss, RegressionLoss


class LossSlope(Protocol):
    """A loss and its derivatives at the outputs of a network."""

    @property
    def slope(self) -> Tensor:
        """The derivative of the loss by the outputs [B, n, o]."""

    def value(self) -> Tensor:
        """The loss of each task [B]."""

    def hvp(self, moved: Tensor) -> Tensor:
        """The Hessian by the outputs times `moved` [B, n, o]: the derivative of `slope` along it."""


class SquaredError:
    """The loss of RegressionLoss: half the mean squared error."""

    def __init__(self, outputs: Tensor, y: Tensor, share: Tensor) -> None:
        self._away, self._share = outputs - y, share / y.shape[2]
        self.slope = self._away * self._share

    def value(self) -> Tensor:
        return 0.5 * (self._away * self.slope).sum(dim=(1, 2))

    def hvp(self, moved: Tensor) -> Tensor:
        return moved * self._share


class CrossEntropy:
    """The loss of ClassificationLoss: the cross-entropy of the outputs' softmax."""

    def __init__(self, outputs: Tensor, y: Tensor, share: Tensor) -> None:
        self._y, self._share = y, share
        self._log = log_softmax(outputs, dim=2)
        self._weighted = self._log.exp().mul_(y.sum(dim=2, keepdim=True) * share)
        self.slope = self._weighted - y * share

    def value(self) -> Tensor:
        return -(self._share * self._y * self._log).sum(dim=(1, 2))

    def hvp(self, moved: Tensor) -> Tensor:
        mean = (self._log.exp() * moved).sum(dim=2, keepdim=True)
        return self._weighted * (moved - mean)


MakeSlope = Callable[[Tensor, Tensor, Tensor], LossSlope]
"""A function (outputs, y, share) → the loss at these outputs."""

MAKE_SLOPE: dict[type[NetworkLoss], MakeSlope] = {
    RegressionLoss: SquaredError,
    ClassificationLoss: CrossEntropy,
}
