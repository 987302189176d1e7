"""Gradients and Hessian-vector products of an MLP's regression loss, as batched matrix products over all tasks at once.

The HVP is Pearlmutter's R-operator (1994) written out. Parameters lie flat [B, P], in the module's own order: a layer's
weight [o, i] row by row, then its bias. Equal to `TracedDerivatives` to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from amaml.models.mlp import Activation


def _activate(kind: Activation, z: Tensor) -> Tensor:
    if kind == "tanh":
        return torch.tanh_(z)
    if kind == "sigmoid":
        return torch.sigmoid_(z)
    if kind == "softplus":
        return torch.nn.functional.softplus(z)
    return torch.relu_(z)


def _slope(kind: Activation, a: Tensor) -> Tensor:
    """σ'(z) from a = σ(z)."""
    if kind == "tanh":
        return torch.addcmul(torch.ones_like(a[:1, :1, :1]), a, a, value=-1)
    if kind == "sigmoid":
        return torch.addcmul(a, a, a, value=-1)
    if kind == "softplus":
        return -torch.expm1(-a)
    return (a > 0).to(a.dtype)


def _bend(kind: Activation, a: Tensor, slope: Tensor) -> Tensor | None:
    """σ''(z) from a = σ(z) and σ'(z); None where it is zero almost everywhere."""
    if kind == "tanh":
        return (a * slope).mul_(-2)
    if kind == "sigmoid":
        return torch.addcmul(slope, slope, a, value=-2)
    if kind == "softplus":
        return torch.addcmul(slope, slope, slope, value=-1)
    return None


class MLPDerivatives:
    """Of ½·mean((net(x)−y)²): `support` and `query` are (x [B, n, d], y [B, n, o])."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        support: tuple[Tensor, Tensor],
        query: tuple[Tensor, Tensor],
    ) -> None:
        self.widths, self.activation = tuple(widths), activation
        self.support, self.query_set = support, query
        sizes = [(outputs * inputs, outputs) for inputs, outputs in pairwise(self.widths)]
        self._sizes = [size for pair in sizes for size in pair]

    def take(self, rows: Tensor) -> MLPDerivatives:
        def pick(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0][rows], pair[1][rows]

        return MLPDerivatives(self.widths, self.activation, pick(self.support), pick(self.query_set))

    def gradient(self, u: Tensor) -> Tensor:
        layers = self._layers(u)
        return self._backward(u, layers, self._forward(layers, self.support[0]), self.support[1])

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers(u)
        activations = self._forward(layers, self.query_set[0])
        loss = 0.5 * (activations[-1] - self.query_set[1]).square().mean(dim=(1, 2))
        return loss, self._backward(u, layers, activations, self.query_set[1])

    def _layers(self, u: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of [B, P]: each layer's weight [B, o, i] and bias [B, 1, o]."""
        parts = torch.split(u, self._sizes, dim=1)
        return [
            (weight.view(len(u), outputs, inputs), bias.unsqueeze(1))
            for weight, bias, (inputs, outputs) in zip(parts[::2], parts[1::2], pairwise(self.widths), strict=True)
        ]

    def _forward(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> list[Tensor]:
        """Activations [B, n, width] of every layer, x first, the network's output last."""
        activations = [x]
        for index, (weight, bias) in enumerate(layers):
            z = torch.baddbmm(bias, activations[-1], weight.mT)
            activations.append(z if index + 1 == len(layers) else _activate(self.activation, z))
        return activations

    def _backward(self, u: Tensor, layers: list[tuple[Tensor, Tensor]], activations: list[Tensor], y: Tensor) -> Tensor:
        out = torch.empty_like(u)
        delta = (activations[-1] - y).div_(y[0].numel())
        for index, (weight, bias) in reversed(list(enumerate(self._layers(out)))):
            torch.bmm(delta.mT, activations[index], out=weight)
            torch.sum(delta, dim=1, keepdim=True, out=bias)
            if index:
                delta = torch.bmm(delta, layers[index][0]).mul_(_slope(self.activation, activations[index]))
        return out

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        x, y = self.support
        layers, tangents = self._layers(u), self._layers(v)
        activations = self._forward(layers, x)
        slopes = [_slope(self.activation, a) for a in activations[1:-1]]
        # Forward: R{z} and R{a} of every layer; R{x} = 0.
        pre: list[Tensor] = []
        moved: list[Tensor] = []
        for index, (weight, _) in enumerate(layers):
            tangent_weight, tangent_bias = tangents[index]
            z = torch.baddbmm(tangent_bias, activations[index], tangent_weight.mT)
            if index:
                z.baddbmm_(moved[-1], weight.mT)
            pre.append(z)
            moved.append(z if index + 1 == len(layers) else z * slopes[index])
        # Backward: δ and R{δ}.
        out = torch.empty_like(u)
        scale = 1 / y[0].numel()
        delta, moved_delta = (activations[-1] - y).mul_(scale), moved[-1] * scale
        for index, (weight, bias) in reversed(list(enumerate(self._layers(out)))):
            torch.bmm(moved_delta.mT, activations[index], out=weight)
            torch.sum(moved_delta, dim=1, keepdim=True, out=bias)
            if not index:
                break
            weight.baddbmm_(delta.mT, moved[index - 1])
            slope = slopes[index - 1]
            pulled = torch.bmm(delta, layers[index][0])
            moved_delta = torch.bmm(moved_delta, layers[index][0]).baddbmm_(delta, tangents[index][0]).mul_(slope)
            bend = _bend(self.activation, activations[index], slope)
            if bend is not None:
                moved_delta.addcmul_(pulled, bend.mul_(pre[index - 1]))
            delta = pulled.mul_(slope)
        return out
