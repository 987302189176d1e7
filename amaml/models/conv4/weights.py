"""Conversion of the convolutional network's flat parameters into the matrices that its derivatives multiply by, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.models.conv4.block import BlockWeights
from amaml.models.conv4.shapes import block_shapes
from amaml.models.conv4.structure import Convolutional


class Weights(NamedTuple):
    """The network's weights for B tasks."""

    blocks: list[BlockWeights]
    linear: Tensor
    """The linear layer's weight [B, outputs, places · filters]."""
    bias: Tensor
    """The linear layer's bias [B, 1, outputs]."""


class WeightOrder:
    """The position in the matrices of each of the module's parameters, flat [P]; a gather converts between the two."""

    def __init__(self, structure: Convolutional, device: torch.device) -> None:
        shapes, outputs = block_shapes(structure.picture, structure.filters), structure.outputs
        self._shapes, self._outputs = shapes, outputs
        sizes: list[tuple[int, ...]] = []
        for shape in shapes:
            sizes += [(shape.filters, shape.channels, 3, 3), *[(shape.filters,)] * 3]
        sizes += [(outputs, shapes[-1].filters, *shapes[-1].places), (outputs,)]
        numbers = [torch.Size(size).numel() for size in sizes]
        tensors = [part.view(size) for part, size in zip(torch.arange(sum(numbers)).split(numbers), sizes, strict=True)]
        # Channels precede places in the module's tensors and follow them in the matrices.
        upright = [tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor for tensor in tensors]
        turned = [kernel.flip(2, 3).permute(1, 2, 3, 0) for kernel in tensors[4:-2:4]]
        own = torch.cat([tensor.flatten() for tensor in upright])
        self._order = torch.cat([own, *[kernel.flatten() for kernel in turned]]).to(device)
        self._inverse = torch.empty_like(own).index_copy_(0, own, torch.arange(len(own))).to(device)
        self._numbers = [*numbers, *(kernel.numel() for kernel in turned)]

    def weights(self, u: Tensor) -> Weights:
        """The weights for parameters u [B, P]."""
        batch, count = len(u), len(self._shapes)
        parts = u.index_select(1, self._order).unsqueeze(1).split_with_sizes(self._numbers, dim=2)
        linear, bias, *turned = parts[4 * count :]
        blocks = []
        for index, shape in enumerate(self._shapes):
            kernel, bias_row, scale, shift = parts[4 * index : 4 * index + 4]
            back = turned[index - 1].view(batch, shape.channels, 9 * shape.filters) if index else None
            matrix = kernel.view(batch, shape.filters, 9 * shape.channels)
            blocks.append(BlockWeights(matrix, bias_row, scale, shift, back))
        return Weights(blocks, linear.view(batch, self._outputs, -1), bias)

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """The flat parameters [B, P] from the [B, size] of each matrix in the order of `Weights`, without the turned kernels."""
        return torch.cat(list(parts), dim=1).index_select(1, self._inverse)


@lru_cache(maxsize=16)
def weight_order(structure: Convolutional, device: torch.device) -> WeightOrder:
    """The order of a network's weights, computed once for each structure and device."""
    return WeightOrder(structure, device)
