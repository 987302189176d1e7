"""The sizes of the convolutional network's blocks. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

BLOCKS = 4
LEAST_PIXELS = 2
"""The least side of the next block's input: normalising a single pixel makes the loss so steep that steps must be short."""


class BlockShape(NamedTuple):
    """The shape of a block's input, its number of filters, and whether it halves the picture."""

    channels: int
    height: int
    width: int
    filters: int
    halved: bool

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def places(self) -> tuple[int, int]:
        """The height and width of the block's output."""
        return (self.height // 2, self.width // 2) if self.halved else (self.height, self.width)


def block_shapes(picture: tuple[int, int, int], filters: int) -> list[BlockShape]:
    """The shapes of the network's blocks for pictures of this (channels, height, width)."""
    shapes, (channels, height, width) = [], picture
    for block in range(1, BLOCKS + 1):
        smallest = 1 if block == BLOCKS else LEAST_PIXELS
        shapes.append(BlockShape(channels, height, width, filters, min(height, width) // 2 >= smallest))
        channels, (height, width) = filters, shapes[-1].places
    return shapes
