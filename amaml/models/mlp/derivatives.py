"""Gradients and Hessian-vector products of an MLP's regression loss, as batched matrix products over all tasks at once.

The HVP is Pearlmutter's R-operator (1994) written out. Parameters are flat [B, P], in the module's own order: a layer's weight
[o, i] row by row, then its bias. The values equal those of `TracedDerivatives` to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from amaml.models.mlp.module import Activation


def _activate(kind: Activation, z: Tensor, scratch: Tensor) -> Tensor:
    """Computes σ(z) in place."""
    if kind == "tanh":
        return torch.tanh_(z) if z.is_cuda else _tanh(z, scratch)
    if kind == "sigmoid":
        return torch.sigmoid_(z)
    if kind == "softplus":
        return z.copy_(torch.nn.functional.softplus(z))
    return torch.relu_(z)


def _tanh(z: Tensor, scratch: Tensor) -> Tensor:
    """Computes tanh(z) in place as e/(e + 2) with e = exp(2z) − 1. It is accurate to a few units in the last place, and on CPUs
    takes two thirds of the time of torch.tanh. For z above 30, where 2z is clamped, it is 1 in either precision."""
    torch.expm1_(z.mul_(2).clamp_max_(60))
    return z.div_(torch.add(z, 2, out=scratch))


def _times_slope(kind: Activation, v: Tensor, a: Tensor) -> Tensor:
    """Computes v·σ'(z) from a = σ(z), in place of v."""
    if kind == "tanh":
        torch.ops.aten.tanh_backward.grad_input(v, a, grad_input=v)
    elif kind == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(v, a, grad_input=v)
    elif kind == "relu":
        torch.ops.aten.threshold_backward.grad_input(v, a, 0, grad_input=v)
    else:
        v.mul_(torch.expm1(-a).neg_())  # softplus: σ'(z) = 1 − e^−a
    return v


def _add_moved_slope(kind: Activation, out: Tensor, delta: Tensor, a: Tensor, moved: Tensor) -> None:
    """Adds delta·σ''(z)·R{z} to `out`, from a = σ(z) and `moved` = σ'(z)·R{z}, which is overwritten."""
    if kind == "tanh":
        out.addcmul_(delta, moved.mul_(a), value=-2)
    elif kind == "sigmoid":
        out.addcmul_(delta, moved.addcmul_(a, moved, value=-2))
    elif kind == "softplus":
        out.addcmul_(delta, moved.mul_(torch.exp(-a)))
    # For relu, σ'' is 0 except at its kink.


# The matrices of a layer with one input or one output are thin, and batched matrix multiplication of those is slow: below, such
# products are computed as outer products or transposed.


def _layer(z: Tensor, bias: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """Computes z [B, n, o] = bias [B, 1, o] + a [B, n, i] weightᵀ."""
    outputs, inputs = weight.shape[1:]
    if inputs == 1:
        return torch.addcmul(bias, a, weight.mT, out=z)
    if outputs == 1:
        torch.baddbmm(bias, weight, a.mT, out=z.mT)
        return z
    return torch.baddbmm(bias, a, weight.mT, out=z)


def _add_layer(z: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """Adds a [B, n, i] weightᵀ to z [B, n, o]."""
    if weight.shape[1] == 1:
        z.mT.baddbmm_(weight, a.mT)
        return z
    return z.baddbmm_(a, weight.mT)


def _layer_vjp(out: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """Computes out [B, n, i] = delta [B, n, o] weight [B, o, i], a layer's vector-Jacobian product by its input."""
    if weight.shape[1] == 1:
        return torch.mul(delta, weight, out=out)
    return torch.bmm(delta, weight, out=out)


def _add_layer_vjp(out: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """Adds delta [B, n, o] weight [B, o, i] to out [B, n, i]."""
    if weight.shape[1] == 1:
        return out.addcmul_(delta, weight)
    return out.baddbmm_(delta, weight)


def _weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    """The product deltaᵀ a [B, o, i]. Where i is 1 its transpose is computed, whose memory has the same order."""
    return torch.bmm(a.mT, delta) if a.shape[2] == 1 else torch.bmm(delta.mT, a)


def _add_weight_gradient(out: Tensor, delta: Tensor, a: Tensor) -> None:
    """Adds `_weight_gradient(delta, a)` to `out`."""
    if a.shape[2] == 1:
        out.baddbmm_(a.mT, delta)
    else:
        out.baddbmm_(delta.mT, a)


class MLPDerivatives:
    """The derivatives of the loss ½·mean((net(x)−y)²), where `support` and `query` are (x [B, n, d], y [B, n, o])."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        support: tuple[Tensor, Tensor],
        query: tuple[Tensor, Tensor],
    ) -> None:
        self.widths, self.activation = tuple(widths), activation
        self.smooth = activation != "relu"
        self.support, self.query_set = support, query
        sizes = [(outputs * inputs, outputs) for inputs, outputs in pairwise(self.widths)]
        self._sizes = [size for pair in sizes for size in pair]
        self._scratch: dict[tuple[str, int, int], Tensor] = {}

    def _room(self, name: str, layer: int, like: Tensor) -> Tensor:
        """Memory [B, n, width] that is reused on every call: it is still in the processor's cache, while writing into fresh
        memory would take twice as long."""
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
        """Frees the memory that a solve wrote into. There is nothing to check, since formulas don't change during a solve."""
        self._scratch.clear()

    def outputs(self, u: Tensor) -> Tensor:
        """The network's outputs for the support rows [B, n, o]."""
        return self._forward(self._layers(u), self.support[0])[-1].clone()

    def _layers(self, u: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's weight [B, o, i] and bias [B, 1, o] as views of the parameters [B, P]."""
        parts, batch = u.unsqueeze(1).split_with_sizes(self._sizes, dim=2), u.shape[0]
        return [
            (weight.view(batch, outputs, inputs), bias)
            for weight, bias, (inputs, outputs) in zip(parts[::2], parts[1::2], pairwise(self.widths), strict=True)
        ]

    def _forward(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> list[Tensor]:
        """The activations [B, n, width] of every layer: x first, the network's output last."""
        activations = [x]
        for index, (weight, bias) in enumerate(layers):
            z = _layer(self._room("activation", index + 1, x), bias, activations[-1], weight)
            if index + 1 < len(layers):
                _activate(self.activation, z, self._room("delta", index + 1, x))
            activations.append(z)
        return activations

    def _backward(self, layers: list[tuple[Tensor, Tensor]], activations: list[Tensor], y: Tensor) -> Tensor:
        parts: list[Tensor] = []
        delta = (activations[-1] - y).div_(y[0].numel())
        for index, (weight, _) in reversed(list(enumerate(layers))):
            parts += [delta.sum(dim=1), _weight_gradient(delta, activations[index]).flatten(1)]
            if index:
                delta = _layer_vjp(self._room("delta", index, y), delta, weight)
                _times_slope(self.activation, delta, activations[index])
        return torch.cat(parts[::-1], dim=1)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        x, y = self.support
        layers, tangents = self._layers(u), self._layers(v)
        activations = self._forward(layers, x)
        # Forward: R{a} of every layer from R{z}; R{x} = 0.
        moved: list[Tensor] = [x]
        for index, (tangent_weight, tangent_bias) in enumerate(tangents):
            z = _layer(self._room("moved", index + 1, x), tangent_bias, activations[index], tangent_weight)
            if index:
                _add_layer(z, moved[-1], layers[index][0])
            moved.append(z if index + 1 == len(layers) else _times_slope(self.activation, z, activations[index + 1]))
        # Backward: δ and R{δ}.
        parts: list[Tensor] = []
        scale = 1 / y[0].numel()
        delta, moved_delta = (activations[-1] - y).mul_(scale), moved[-1].mul_(scale)
        for index, (weight, _) in reversed(list(enumerate(layers))):
            weight_part = _weight_gradient(moved_delta, activations[index])
            if index:
                _add_weight_gradient(weight_part, delta, moved[index])
            parts += [moved_delta.sum(dim=1), weight_part.flatten(1)]
            if not index:
                break
            a = activations[index]
            moved_delta = _layer_vjp(self._room("moved delta", index, y), moved_delta, weight)
            moved_delta = _times_slope(self.activation, _add_layer_vjp(moved_delta, delta, tangents[index][0]), a)
            delta = _layer_vjp(self._room("delta", index, y), delta, weight)
            _add_moved_slope(self.activation, moved_delta, delta, a, moved[index])
            _times_slope(self.activation, delta, a)
        return torch.cat(parts[::-1], dim=1)
