"""The sizes of the convolutional network's blocks. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

BLOCKS = 4
LEAST_PIXELS = 2
"""A side that the next block still has: normalising a single pixel makes the loss so steep that short steps are needed."""


class BlockShape(NamedTuple):
    """What goes into a block, and what it does with it."""

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
        """Height and width of what comes out."""
        return (self.height // 2, self.width // 2) if self.halved else (self.height, self.width)


def block_shapes(picture: tuple[int, int, int], filters: int) -> list[BlockShape]:
    """Of the network for pictures of so many channels, rows and columns."""
    shapes, (channels, height, width) = [], picture
    for block in range(1, BLOCKS + 1):
        smallest = 1 if block == BLOCKS else LEAST_PIXELS
        shapes.append(BlockShape(channels, height, width, filters, min(height, width) // 2 >= smallest))
        channels, (height, width) = filters, shapes[-1].places
    return shapes
