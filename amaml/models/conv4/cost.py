"""The estimated cost of the convolutional network. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from amaml.models.conv4.shapes import block_shapes
from amaml.models.cost import ModelCost

if TYPE_CHECKING:
    from amaml.models.conv4.spec import Conv4Spec

_SLOWER: Final = 4.0
"""The time of a convolution relative to that of a matrix product with as many multiplications."""
_CALL_SECONDS: Final = (5e-3, 12e-3)


def cost_of(spec: Conv4Spec, picture: tuple[int, int, int], outputs: int) -> ModelCost:
    blocks, filters = block_shapes(picture, spec.filters), spec.filters
    left = math.prod(blocks[-1].places)
    return ModelCost(
        parameters=sum((9 * block.channels + 3) * filters for block in blocks) + (left * filters + 1) * outputs,
        multiplications=_SLOWER * sum(9 * block.channels * filters * block.pixels for block in blocks),
        activations=sum(filters * block.pixels for block in blocks),
        call_seconds=_CALL_SECONDS,
    )
