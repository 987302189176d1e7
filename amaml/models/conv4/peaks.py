"""ReLU and 2 × 2 max pooling in one operation, with its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.models.conv4.scratch import Scratch


class Peaks:
    """The larger of 0 and the maximum of each `corners` values: [S, pixels · c] → [S, cells · c], one picture in each row. Pixels
    are in the order of `by_corners`; those that an odd side leaves over are ignored. With one corner it is a plain ReLU.

    Its derivative is the slope [S, corners, cells · c]: 1 for the largest value of a cell if that is above 0, divided evenly
    among equal largest values as in the derivative of torch's amax; else 0.
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

    def jvp(self, moved: Tensor) -> Tensor:
        """The Jacobian-vector product [S, cells · c] with the vector `moved` [S, pixels · c], which is overwritten."""
        parts = self._whole(moved).mul_(self._slope)
        return torch.sum(parts, dim=1, out=self._scratch("moved peaks", *self._peaks))

    def vjp(self, delta: Tensor, name: str) -> Tensor:
        """The vector-Jacobian product [S, pixels · c] with the cotangent [S, cells · c], in the scratch memory of this name."""
        out = self._scratch(name, *self._values)  # the pixels left over are never written and stay zero
        torch.mul(self._slope, delta[:, None], out=self._whole(out))
        return out

    def _whole(self, values: Tensor) -> Tensor:
        _, corners, peaks = self._cells
        whole: Tensor = values[:, : corners * peaks].unflatten(1, (corners, peaks))
        return whole
