"""Gradients and Hessian-vector products of the convolutional network's losses, as batched matrix products over all tasks.

The HVP is Pearlmutter's R-operator (1994) written out. Parameters are flat [B, P], in the module's own order. The values equal
those of `TracedDerivatives` to rounding, even at the kinks of ReLU and maximum.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from amaml.models.conv4.block import Block, unfolded
from amaml.models.conv4.shapes import block_shapes
from amaml.models.conv4.structure import Convolutional
from amaml.models.conv4.weights import Weights, weight_order
from amaml.models.loss_slopes import LossSlope, MakeSlope, SquaredError


class Points(NamedTuple):
    """The support or query sets of B tasks, in the form that the first block multiplies."""

    columns: Tensor
    """The pictures [B, n · pixels, 9 · channels], unfolded for the first block."""
    y: Tensor
    """The targets [B, n, o]."""
    share: Tensor
    """The weight of each point in the mean [B, n, 1]."""

    def take(self, rows: Tensor) -> Points:
        return Points(*(part[rows] for part in self))


def points_of(structure: Convolutional, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Points:
    """The sets with pictures x [B, n, channels · height · width] and targets y [B, n, o]. The mask [B, n] says which points
    count; without one, all do."""
    counted = torch.ones_like(y[..., :1])
    if mask is not None:
        counted = mask.bool().unsqueeze(2).to(y.dtype)
        x, y = (torch.where(counted.bool(), part, torch.zeros_like(part)) for part in (x, y))
    columns = unfolded(block_shapes(structure.picture, structure.filters)[0], x)
    return Points(columns, y, counted / counted.sum(dim=1, keepdim=True))


def outputs(structure: Convolutional, u: Tensor, x: Tensor) -> Tensor:
    """The network's outputs [B, n, o] for parameters u [B, P] and pictures x [B, n, channels · height · width]."""
    y = x.new_zeros(*x.shape[:2], structure.outputs)
    return _SetDerivatives(structure, SquaredError, points_of(structure, x, y)).outputs(u)


class Conv4Derivatives:
    """The derivatives of the losses of a `Conv4` with this structure on the support and query sets."""

    smooth: ClassVar[bool] = False

    def __init__(
        self, structure: Convolutional, losses: tuple[MakeSlope, MakeSlope], support: Points, query: Points
    ) -> None:
        self._structure, self._losses, self._points = structure, losses, (support, query)
        self._sets: dict[int, _SetDerivatives] = {}

    def take(self, rows: Tensor) -> Conv4Derivatives:
        support, query = (points.take(rows) for points in self._points)
        return Conv4Derivatives(self._structure, self._losses, support, query)

    def gradient(self, u: Tensor) -> Tensor:
        return self._set(0).loss_and_gradient(u)[1]

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self._set(0).hvp(u, v)

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = self._set(1).loss_and_gradient(u)
        return loss.value(), gradient

    def confirm(self) -> None:
        """Frees the memory that a solve wrote into. There is nothing to check, since formulas don't change during a solve."""
        self._sets.clear()

    def _set(self, number: int) -> _SetDerivatives:
        """The derivatives of the loss on the support set (0) or on the query set (1)."""
        if number not in self._sets:
            self._sets[number] = _SetDerivatives(self._structure, self._losses[number], self._points[number])
        return self._sets[number]


class _SetDerivatives:
    """The derivatives of the loss on one set. The blocks keep the results of a forward pass for the next backward passes."""

    def __init__(self, structure: Convolutional, loss: MakeSlope, points: Points) -> None:
        self._order = weight_order(structure, points.y.device)
        self._loss, self._points = loss, points
        pictures = points.y.shape[0], points.y.shape[1]
        first, *others = block_shapes(structure.picture, structure.filters)
        self._blocks = [Block(first, points.y, pictures, points.columns)]
        self._blocks += [Block(shape, points.y, pictures) for shape in others]

    def outputs(self, u: Tensor) -> Tensor:
        return self._forward(self._order.weights(u))

    def loss_and_gradient(self, u: Tensor) -> tuple[LossSlope, Tensor]:
        weights = self._order.weights(u)
        loss = self._loss(self._forward(weights), *self._points[1:])
        return loss, self._backward(weights, loss)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        weights, moved_weights = self._order.weights(u), self._order.weights(v)
        loss = self._loss(self._forward(weights), *self._points[1:])
        moved_slope = loss.hvp(self._forward_moved(weights, moved_weights))
        return self._backward_moved(weights, moved_weights, loss.slope, moved_slope)

    def _forward(self, weights: Weights) -> Tensor:
        """The network's outputs [B, n, o]."""
        a = self._points.columns  # the first block was built with them and ignores its argument
        for block, own in zip(self._blocks, weights.blocks, strict=True):
            a = block.forward(own, a)
        self._features = self._matrix(a)
        return torch.baddbmm(weights.bias, self._features, weights.linear.mT)

    def _forward_moved(self, weights: Weights, moved_weights: Weights) -> Tensor:
        """R{outputs} [B, n, o], the derivative of the outputs along the direction of the weights."""
        moved = self._points.columns  # the first block's input is constant, and it ignores its argument
        for block, own, moved_own in zip(self._blocks, weights.blocks, moved_weights.blocks, strict=True):
            moved = block.forward_moved(own, moved_own, moved)
        self._moved_features = self._matrix(moved)
        outputs = torch.baddbmm(moved_weights.bias, self._features, moved_weights.linear.mT)
        return outputs.baddbmm_(self._moved_features, weights.linear.mT)

    def _backward(self, weights: Weights, loss: LossSlope) -> Tensor:
        """The gradient [B, P]."""
        parts = [torch.bmm(loss.slope.mT, self._features).flatten(1), loss.slope.sum(dim=1)]
        delta = torch.bmm(loss.slope, weights.linear).flatten(0, 1)
        for block, own in reversed(list(zip(self._blocks, weights.blocks, strict=True))):
            block.backward(own, delta)
            parts = block.gradient() + parts
            if own.turned is not None:
                delta = block.below(own.turned)
        return self._order.flat(parts)

    def _backward_moved(self, weights: Weights, moved_weights: Weights, slope: Tensor, moved_slope: Tensor) -> Tensor:
        """R{gradient} [B, P], where `slope` is the loss's derivative by the outputs and `moved_slope` is R{slope}."""
        linear = torch.bmm(moved_slope.mT, self._features).baddbmm_(slope.mT, self._moved_features)
        parts = [linear.flatten(1), moved_slope.sum(dim=1)]
        delta = torch.bmm(slope, weights.linear).flatten(0, 1)
        moved = torch.bmm(moved_slope, weights.linear).baddbmm_(slope, moved_weights.linear).flatten(0, 1)
        for block, own, moved_own in reversed(
            list(zip(self._blocks, weights.blocks, moved_weights.blocks, strict=True))
        ):
            block.backward(own, delta)
            block.backward_moved(own, moved_own, moved)
            parts = block.moved_gradient() + parts
            if own.turned is not None and moved_own.turned is not None:
                delta, moved = block.moved_below(own.turned, moved_own.turned)
        return self._order.flat(parts)

    def _matrix(self, rows: Tensor) -> Tensor:
        """A view [B, n, features] of rows [B · n, features]."""
        return rows.view(*self._points.y.shape[:2], -1)
