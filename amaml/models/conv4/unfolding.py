"""Unfolds pictures into matrices with one row for each pixel's 3 × 3 neighbourhood, so that a convolution is one matrix product.

Pictures are stored pixel after pixel, channels last. Their convolution is `unfold(x) @ kernel`; the derivative by its input is
`unfold(derivative by its output) @ kernel turned by 180°`. Nothing is scattered or accumulated in memory, so it is deterministic
on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Region(NamedTuple):
    """Pixels of a picture that are stored one after another: those of `rows` × `columns` cells of `corners` × `corners` pixels,
    from the pixel (top, left) on. For each place within a cell, in turn, it lists that pixel of every cell."""

    top: int
    left: int
    corners: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.corners**2 * self.rows * self.columns

    def view(self, padded: Tensor, channels: int, *, neighbours: bool) -> Tensor:
        """A view of the region's pixels [S, corners, corners, rows, columns, c], or of their neighbourhoods
        [S, corners, corners, rows, columns, 3, 3c], in pictures with a border [S, h + 2, w + 2, c]."""
        picture, row, pixel, _ = padded.stride()
        size = (padded.shape[0], self.corners, self.corners, self.rows, self.columns)
        stride = (picture, row, pixel, self.corners * row, self.corners * pixel)
        first = self.top * row + self.left * pixel
        if neighbours:
            return padded.as_strided((*size, 3, 3 * channels), (*stride, row, 1), first)
        return padded.as_strided((*size, channels), (*stride, 1), first + row + pixel)


def by_rows(height: int, width: int) -> list[Region]:
    """The pixels in row-major order, as one region."""
    return [Region(0, 0, 1, height, width)]


def by_corners(height: int, width: int) -> list[Region]:
    """The pixels in the order of their place in cells of 2 × 2: first all top left ones, then top right, bottom left and bottom
    right, so that a maximum over cells compares four long vectors. The pixels that an odd side leaves over come last."""
    regions = [Region(0, 0, 2, height // 2, width // 2)]
    if width % 2:
        regions.append(Region(0, width - 1, 1, 2 * (height // 2), 1))
    if height % 2:
        regions.append(Region(height - 1, 0, 1, 1, width))
    return regions


class Unfolding:
    """Unfolds n pictures of each of B tasks: [B, n, pixels · c], with pixels in the order of `source`, → [B, n · pixels, 9c],
    with rows in the order of `target` and columns by (row, column, channel) of the neighbour, zero beyond the border. The result
    is in the same memory every time."""

    def __init__(
        self,
        like: Tensor,
        pictures: tuple[int, int],
        picture: tuple[int, int, int],
        *,
        source: Sequence[Region],
        target: Sequence[Region],
    ) -> None:
        (batch, count), (channels, height, width) = pictures, picture
        padded = like.new_zeros(batch * count, height + 2, width + 2, channels)
        self._matrix = like.new_empty(batch, count * height * width, 9 * channels)
        self._channels = channels
        self._inside = _views(padded, source, channels, neighbours=False)
        self._around = _views(padded, target, channels, neighbours=True)
        rows = self._matrix.view(batch * count, height * width, 9 * channels).split([r.pixels for r in target], dim=1)
        self._rows = [
            part.unflatten(1, view.shape[1:5]).unflatten(-1, (3, -1))
            for part, view in zip(rows, self._around, strict=True)
        ]
        self._sizes = [region.pixels * channels for region in source]

    def __call__(self, x: Tensor) -> Tensor:
        for inside, part in zip(
            self._inside, x.reshape(len(self._inside[0]), -1).split(self._sizes, dim=1), strict=True
        ):
            inside.copy_(part.view(inside.shape))
        for rows, around in zip(self._rows, self._around, strict=True):
            rows.copy_(around)
        return self._matrix


def _views(padded: Tensor, regions: Sequence[Region], channels: int, *, neighbours: bool) -> list[Tensor]:
    return [region.view(padded, channels, neighbours=neighbours) for region in regions]
