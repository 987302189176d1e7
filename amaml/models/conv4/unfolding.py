"""Pictures as matrices, a pixel's 3 × 3 neighbourhood a row, by which a convolution is one matrix product a task.

Pictures lie channels last, pixel after pixel. A convolution of them is `unfold(x) @ kernel`; the derivative by its input is
the same of the derivative by its output with the kernel turned by 180°. Nothing is scattered or summed up in memory, so
that it is deterministic on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Region(NamedTuple):
    """Pixels of a picture that follow one another: for each of `corners` × `corners` places in cells of that size, the cells
    of `rows` rows and `columns` columns, from the pixel (top, left) on."""

    top: int
    left: int
    corners: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.corners**2 * self.rows * self.columns

    def view(self, padded: Tensor, channels: int, *, neighbours: bool) -> Tensor:
        """Of pictures with a border [S, h + 2, w + 2, c]: the region's pixels [S, corners, corners, rows, columns, c], or their
        neighbourhoods [S, corners, corners, rows, columns, 3, 3c]."""
        picture, row, pixel, _ = padded.stride()
        size = (padded.shape[0], self.corners, self.corners, self.rows, self.columns)
        stride = (picture, row, pixel, self.corners * row, self.corners * pixel)
        first = self.top * row + self.left * pixel
        if neighbours:
            return padded.as_strided((*size, 3, 3 * channels), (*stride, row, 1), first)
        return padded.as_strided((*size, channels), (*stride, 1), first + row + pixel)


def by_rows(height: int, width: int) -> list[Region]:
    """The usual order of pixels."""
    return [Region(0, 0, 1, height, width)]


def by_corners(height: int, width: int) -> list[Region]:
    """First the pixels that lie top left in the cells of 2 × 2, then top right, bottom left and bottom right, so that a cell's
    are compared as four long vectors; at the end what an odd side leaves over."""
    regions = [Region(0, 0, 2, height // 2, width // 2)]
    if width % 2:
        regions.append(Region(0, width - 1, 1, 2 * (height // 2), 1))
    if height % 2:
        regions.append(Region(height - 1, 0, 1, 1, width))
    return regions


class Unfolding:
    """Of n pictures of each of B tasks: [B, n, pixels · c], pixels in the order of `source`, → [B, n · pixels, 9c], rows in the
    order of `target`, columns as (row, column, channel) of the neighbour, zero beyond the border. The same memory every time."""

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
