"""Reading off a network's modules whether it is fully connected or the convolutional network, and of which sizes."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from amaml.models.conv4.module import Conv4
from amaml.models.mlp.module import ACTIVATIONS, MLP, Activation


class Dense(NamedTuple):
    """Linear layers with one activation between them; parameters in the module's own order."""

    widths: tuple[int, ...]
    activation: Activation


def dense(net: nn.Module) -> Dense | None:
    """The structure of a network that is nothing but such layers, each with a bias and parameters of its own; else None.

    Only exact types count, since a subclass may do anything, and a module with a hook or an attribute in place of its
    forward does what that says. What can't be seen here the caller finds by comparing values.
    """
    if type(net) not in (MLP, nn.Sequential) or not all(map(_plain, net.modules())):
        return None
    layers = list(net._modules.values())  # with those that stand in several places
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


class Convolutional(NamedTuple):
    """The arguments of the `Conv4` that a network equals."""

    picture: tuple[int, int, int]
    filters: int
    outputs: int


def convolutional(net: nn.Module) -> Convolutional | None:
    """The structure of a `Conv4` whose layers are those that it was made with, each with parameters of its own; else None."""
    if type(net) is not Conv4 or not all(map(_plain, net.modules())):
        return None
    layers = list(net._modules.values())
    if len(layers) < 3:
        return None
    first, convolution, last = layers[0], layers[1], layers[-1]
    if not (type(first) is nn.Unflatten and type(convolution) is nn.Conv2d and type(last) is nn.Linear):
        return None
    channels, height, width = first.unflattened_size
    found = Convolutional((channels, height, width), convolution.out_channels, last.out_features)
    shapes = [(name, parameter.shape) for name, parameter in net.named_parameters()]
    return found if (_described(net), shapes) == _made_with(found) else None


def _described(net: nn.Module) -> list[tuple[type[nn.Module], str]]:
    """Every layer's type and what it says of its settings."""
    return [(type(layer), layer.extra_repr()) for layer in net._modules.values() if layer is not None]


@cache
def _made_with(structure: Convolutional) -> tuple[list[tuple[type[nn.Module], str]], list[tuple[str, torch.Size]]]:
    """Layers and parameters of such a network."""
    with torch.device("meta"):
        net = Conv4(*structure)
    return _described(net), [(name, parameter.shape) for name, parameter in net.named_parameters()]


def _plain(module: nn.Module) -> bool:
    """Without hooks, buffers or a forward of its own."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks,
    )  # fmt: skip
    return not any(hooks) and not module._buffers and not {"forward", "__call__", "_call_impl"} & vars(module).keys()
