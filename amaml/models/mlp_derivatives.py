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
    """σ(z), in place."""
    if kind == "tanh":
        return torch.tanh_(z)
    if kind == "sigmoid":
        return torch.sigmoid_(z)
    if kind == "softplus":
        return z.copy_(torch.nn.functional.softplus(z))
    return torch.relu_(z)


def _slope(kind: Activation, a: Tensor, out: Tensor) -> Tensor:
    """σ'(z) from a = σ(z)."""
    if kind == "tanh":
        return torch.addcmul(a.new_ones(()), a, a, value=-1, out=out)
    if kind == "sigmoid":
        return torch.addcmul(a, a, a, value=-1, out=out)
    if kind == "softplus":
        return torch.expm1(torch.neg(a, out=out), out=out).neg_()
    return torch.sign(a, out=out)


def _bend(kind: Activation, a: Tensor, slope: Tensor, moved: Tensor) -> Tensor | None:
    """σ''(z)·R{z} from a = σ(z), σ'(z) and `moved` = σ'(z)·R{z}, in `moved`'s place; None where it is zero almost everywhere."""
    if kind == "tanh":
        return moved.mul_(a).mul_(-2)
    if kind == "sigmoid":
        return moved.addcmul_(a, moved, value=-2)
    if kind == "softplus":
        return moved.addcmul_(slope, moved, value=-1)
    return None


# A layer of one input or one output makes thin products, which batched matrix multiplication is slow at: below they are
# written as outer products, or transposed.


def _layer(z: Tensor, bias: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """z [B, n, o] = bias [B, 1, o] + a [B, n, i] weightᵀ."""
    outputs, inputs = weight.shape[1:]
    if inputs == 1:
        return torch.addcmul(bias, a, weight.mT, out=z)
    if outputs == 1:
        torch.baddbmm(bias, weight, a.mT, out=z.mT)
        return z
    return torch.baddbmm(bias, a, weight.mT, out=z)


def _add_layer(z: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """z [B, n, o] += a [B, n, i] weightᵀ."""
    if weight.shape[1] == 1:
        z.mT.baddbmm_(weight, a.mT)
        return z
    return z.baddbmm_(a, weight.mT)


def _pull(out: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """out [B, n, i] = delta [B, n, o] weight [B, o, i]."""
    if weight.shape[1] == 1:
        return torch.mul(delta, weight, out=out)
    return torch.bmm(delta, weight, out=out)


def _add_pull(out: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """out [B, n, i] += delta [B, n, o] weight [B, o, i]."""
    if weight.shape[1] == 1:
        return out.addcmul_(delta, weight)
    return out.baddbmm_(delta, weight)


def _weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    """deltaᵀ a [B, o, i]; transposed where i is 1, which lies in memory alike."""
    return torch.bmm(a.mT, delta) if a.shape[2] == 1 else torch.bmm(delta.mT, a)


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
        self._scratch: dict[tuple[str, int, int], Tensor] = {}

    def _room(self, name: str, layer: int, like: Tensor) -> Tensor:
        """[B, n, width] to write into, the same every time: what was written last is still in the processor's cache, where
        fresh memory would take twice as long."""
        key = (name, layer, like.shape[1])
        if key not in self._scratch:
            self._scratch[key] = like.new_empty((*like.shape[:2], self.widths[layer]))
        return self._scratch[key]

    def take(self, rows: Tensor) -> MLPDerivatives:
        def pick(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0][rows], pair[1][rows]

        return MLPDerivatives(self.widths, self.activation, pick(self.support), pick(self.query_set))

    def gradient(self, u: Tensor) -> Tensor:
        layers = self._layers(u)
        return self._backward(layers, self._forward(layers, self.support[0]), self.support[1])

    def query(self, u: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers(u)
        activations = self._forward(layers, self.query_set[0])
        loss = 0.5 * (activations[-1] - self.query_set[1]).square().mean(dim=(1, 2))
        return loss, self._backward(layers, activations, self.query_set[1])

    def confirm(self) -> None:
        """Nothing to do: what is written out is a pure function."""

    def outputs(self, u: Tensor) -> Tensor:
        """What the network gives for the support rows: [B, n, o]."""
        return self._forward(self._layers(u), self.support[0])[-1].clone()

    def _layers(self, u: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of [B, P]: each layer's weight [B, o, i] and bias [B, 1, o]."""
        parts, batch = u.split_with_sizes(self._sizes, dim=1), u.shape[0]
        return [
            (weight.view(batch, outputs, inputs), bias.unsqueeze(1))
            for weight, bias, (inputs, outputs) in zip(parts[::2], parts[1::2], pairwise(self.widths), strict=True)
        ]

    def _forward(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> list[Tensor]:
        """Activations [B, n, width] of every layer, x first, the network's output last."""
        activations = [x]
        for index, (weight, bias) in enumerate(layers):
            z = _layer(self._room("activation", index + 1, x), bias, activations[-1], weight)
            activations.append(z if index + 1 == len(layers) else _activate(self.activation, z))
        return activations

    def _backward(self, layers: list[tuple[Tensor, Tensor]], activations: list[Tensor], y: Tensor) -> Tensor:
        parts: list[Tensor] = []
        delta = (activations[-1] - y).div_(y[0].numel())
        for index, (weight, _) in reversed(list(enumerate(layers))):
            parts += [delta.sum(dim=1), _weight_gradient(delta, activations[index]).flatten(1)]
            if index:
                delta = _pull(self._room("delta", index, y), delta, weight)
                delta.mul_(_slope(self.activation, activations[index], self._room("slope", index, y)))
        return torch.cat(parts[::-1], dim=1)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        x, y = self.support
        layers, tangents = self._layers(u), self._layers(v)
        activations = self._forward(layers, x)
        slopes = [
            _slope(self.activation, a, self._room("slope", index, x)) for index, a in enumerate(activations[1:-1], 1)
        ]
        # Forward: R{a} of every layer from R{z}; R{x} = 0.
        moved: list[Tensor] = [x]
        for index, (tangent_weight, tangent_bias) in enumerate(tangents):
            z = _layer(self._room("moved", index + 1, x), tangent_bias, activations[index], tangent_weight)
            if index:
                _add_layer(z, moved[-1], layers[index][0])
            moved.append(z if index + 1 == len(layers) else z.mul_(slopes[index]))
        # Backward: δ and R{δ}.
        parts: list[Tensor] = []
        scale = 1 / y[0].numel()
        delta, moved_delta = (activations[-1] - y).mul_(scale), moved[-1].mul_(scale)
        for index, (weight, _) in reversed(list(enumerate(layers))):
            weight_part = _weight_gradient(moved_delta, activations[index])
            if index:
                weight_part += _weight_gradient(delta, moved[index])
            parts += [moved_delta.sum(dim=1), weight_part.flatten(1)]
            if not index:
                break
            slope = slopes[index - 1]
            moved_delta = _pull(self._room("moved delta", index, y), moved_delta, weight)
            moved_delta = _add_pull(moved_delta, delta, tangents[index][0]).mul_(slope)
            delta = _pull(self._room("delta", index, y), delta, weight)
            bend = _bend(self.activation, activations[index], slope, moved[index])
            if bend is not None:
                moved_delta.addcmul_(delta, bend)
            delta.mul_(slope)
        return torch.cat(parts[::-1], dim=1)
