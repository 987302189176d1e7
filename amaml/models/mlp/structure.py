"""Recognises a fully connected network and its sizes from a network's modules."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import nn

from amaml.models.mlp.module import ACTIVATIONS, MLP, Activation
from amaml.models.plain import plain


class Dense(NamedTuple):
    """A network of linear layers with one activation between them, whose parameters are in the module's own order."""

    widths: tuple[int, ...]
    activation: Activation


def dense(net: nn.Module) -> Dense | None:
    """The structure of a network that consists of such layers only, each with a bias and parameters of its own; None for others.

    Only exact types count, since a subclass may compute anything; so may a module with a hook or with an attribute in place of
    its forward. The caller detects other differences by comparing values.
    """
    if type(net) not in (MLP, nn.Sequential) or not all(map(plain, net.modules())):
        return None
    layers = list(net._modules.values())  # includes a layer that occurs several times, as often as it occurs
    linear, between = [layer for layer in layers[::2] if type(layer) is nn.Linear], layers[1::2]
    kinds = {type(layer) for layer in between}
    activation = next((name for name, kind in ACTIVATIONS.items() if kinds == {kind}), None)
    if activation is None or len(linear) != len(between) + 1 or len(layers) != len(linear) + len(between):
        return None
    if any(layer.beta != 1 or layer.threshold != 20 for layer in between if type(layer) is nn.Softplus):
        return None
    own = [(layer.weight, layer.bias) for layer in linear if set(layer._parameters) == {"weight", "bias"}]
    tensors = [tensor for pair in own for tensor in pair if tensor is not None]
    if len({id(tensor) for tensor in tensors}) != 2 * len(linear) or len(list(net.parameters())) != len(tensors):
        return None
    shapes = [(weight.shape, bias.shape) for weight, bias in own]
    widths = (shapes[0][0][1], *(weight[0] for weight, _ in shapes))
    if shapes != [((outputs, inputs), (outputs,)) for inputs, outputs in pairwise(widths)]:
        return None
    return Dense(widths, activation)
