"""ReLU and the largest of each 2 × 2 pixels, with their slope."""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.models.conv4.scratch import Scratch


class Peaks:
    """max(0, ·) of `corners` values: [S, pixels · c] → [S, cells · c], a picture a row. Pixels lie by corners (see `unfolding`);
    those left over by an odd side at the end count nothing. One corner makes it a plain ReLU.

    What is linear in them is told by the slope [S, corners, cells · c]: 1 at the largest if it is above 0, shared evenly
    where several are, as the derivative of torch's amax is; else 0.
    """

    def __init__(self, scratch: Scratch, pictures: int, corners: int, peaks: int, values: int) -> None:
        self._scratch, self._cells, self._peaks = scratch, (pictures, corners, peaks), (pictures, peaks)
        self._values = (pictures, values)
        self._slope = scratch("slope", *self._cells)

    def __call__(self, y: Tensor) -> Tensor:
        cells, largest = self._whole(y), self._scratch("largest", *self._peaks)
        if self._cells[1] == 1:
            torch.gt(cells, 0, out=self._slope)
            return torch.clamp_min(cells[:, 0], 0, out=largest)
        torch.amax(cells, dim=1, out=largest)
        torch.eq(cells, largest[:, None], out=self._slope)
        share = torch.sum(self._slope, dim=1, out=self._scratch("share", *self._peaks))
        torch.div(torch.gt(largest, 0, out=self._scratch("above", *self._peaks)), share, out=share)
        self._slope.mul_(share[:, None])
        return largest.clamp_min_(0)

    def push(self, moved: Tensor) -> Tensor:
        """The derivative of the peaks [S, cells · c] along that of the values [S, pixels · c], which is overwritten."""
        parts = self._whole(moved).mul_(self._slope)
        return torch.sum(parts, dim=1, out=self._scratch("moved peaks", *self._peaks))

    def pull(self, delta: Tensor, name: str) -> Tensor:
        """The derivative by the values [S, pixels · c] from that by the peaks [S, cells · c], in scratch memory of that name."""
        out = self._scratch(name, *self._values)  # where nothing is written it stays zero
        torch.mul(self._slope, delta[:, None], out=self._whole(out))
        return out

    def _whole(self, values: Tensor) -> Tensor:
        _, corners, peaks = self._cells
        whole: Tensor = values[:, : corners * peaks].unflatten(1, (corners, peaks))
        return whole
