"""Recognises the convolutional network and its sizes from a network's modules."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from amaml.models.conv4.module import Conv4
from amaml.models.plain import plain


class Convolutional(NamedTuple):
    """The arguments of the `Conv4` that a network equals."""

    picture: tuple[int, int, int]
    filters: int
    outputs: int


def convolutional(net: nn.Module) -> Convolutional | None:
    """The structure of a `Conv4` that still has its original layers, each with parameters of its own; None for other networks."""
    if type(net) is not Conv4 or not all(map(plain, net.modules())):
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
    """Each layer's type and its settings, as its `extra_repr` states them."""
    return [(type(layer), layer.extra_repr()) for layer in net._modules.values() if layer is not None]


@cache
def _made_with(structure: Convolutional) -> tuple[list[tuple[type[nn.Module], str]], list[tuple[str, torch.Size]]]:
    """The layers and the parameters' names and shapes of a new network with this structure."""
    with torch.device("meta"):
        net = Conv4(*structure)
    return _described(net), [(name, parameter.shape) for name, parameter in net.named_parameters()]
