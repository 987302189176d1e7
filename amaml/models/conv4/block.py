"""One block of the convolutional network, with the derivatives that its gradient and Hessian-vector product are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amaml.models.conv4.normalisation import Normalised
from amaml.models.conv4.peaks import Peaks
from amaml.models.conv4.scratch import Scratch
from amaml.models.conv4.shapes import BlockShape
from amaml.models.conv4.unfolding import Region, Unfolding, by_corners, by_rows


def _order(shape: BlockShape) -> list[Region]:
    """Of the pixels inside a block, as its maximum reads them best."""
    return (by_corners if shape.halved else by_rows)(shape.height, shape.width)


class BlockWeights(NamedTuple):
    """Of B tasks: matrices whose transposes unfolded pictures are multiplied by, and rows to add or multiply by."""

    kernel: Tensor
    """[B, filters, 9 · channels]."""
    bias: Tensor
    """[B, 1, filters], as scale and shift of the normalisation."""
    scale: Tensor
    shift: Tensor
    turned: Tensor | None
    """The kernel turned by 180° [B, channels, 9 · filters], for the way back; the first block has none."""


def unfolded(shape: BlockShape, x: Tensor) -> Tensor:
    """What the first block multiplies for pictures x [B, n, channels · height · width]: [B, n · pixels, 9 · channels]."""
    picture = shape.channels, shape.height, shape.width
    unfold = Unfolding(x, (x.shape[0], x.shape[1]), picture, source=by_rows(*picture[1:]), target=_order(shape))
    return unfold(x.unflatten(2, (shape.channels, -1)).mT)


class Block:
    """Convolution, normalisation, ReLU and, where `halved`, the largest of each 2 × 2 pixels, of n pictures of each of B tasks.

    Pictures are rows [B · n, pixels · channels], the pixels by rows. What goes into the first block never changes: it is
    given unfolded, as `columns`. `moved` is the derivative along a direction of the parameters (Pearlmutter's R{·}), `delta`
    the derivative of the loss. Methods need those above them to have been called at the same weights.
    """

    def __init__(
        self, shape: BlockShape, like: Tensor, pictures: tuple[int, int], columns: Tensor | None = None
    ) -> None:
        self.shape, self._batch, self._pictures = shape, pictures[0], pictures[0] * pictures[1]
        self._first = columns is not None
        if columns is not None:
            self._columns = columns
        else:
            rows = by_rows(shape.height, shape.width)
            inputs, outputs = (shape.channels, shape.height, shape.width), (shape.filters, shape.height, shape.width)
            self._unfold = Unfolding(like, pictures, inputs, source=rows, target=_order(shape))
            self._unfold_moved = Unfolding(like, pictures, inputs, source=rows, target=_order(shape))
            self._unfold_delta = Unfolding(like, pictures, outputs, source=_order(shape), target=rows)
        self._scratch = Scratch(like)
        height, width = shape.places
        self._peaks = Peaks(
            self._scratch, pictures=self._pictures, corners=4 if shape.halved else 1,
            peaks=height * width * shape.filters, values=shape.pixels * shape.filters,
        )  # fmt: skip

    def forward(self, weights: BlockWeights, a: Tensor) -> Tensor:
        """The output [B · n, outputs · filters]; of the first block `a` isn't read."""
        if not self._first:
            self._columns = self._unfold(a)
        z = torch.baddbmm(weights.bias, self._columns, weights.kernel.mT, out=self._room("z"))
        self._normal = Normalised(self._flat(z))
        self._normal_matrix = self._matrix(self._normal.value)
        y = torch.addcmul(weights.shift, weights.scale, self._normal_matrix, out=self._passing())
        return self._peaks(self._flat(y))

    def push(self, weights: BlockWeights, moved_weights: BlockWeights, moved: Tensor) -> Tensor:
        """R{output} from R{a}, which isn't read of the first block, whose input doesn't move."""
        z = torch.baddbmm(moved_weights.bias, self._columns, moved_weights.kernel.mT, out=self._room("moved z"))
        if not self._first:
            self._moved_columns = self._unfold_moved(moved)
            z.baddbmm_(self._moved_columns, weights.kernel.mT)
        self._moved_z = self._flat(z)
        self._moved_normal = self._normal.times_jacobian(self._moved_z)
        y = torch.addcmul(moved_weights.shift, moved_weights.scale, self._normal_matrix, out=self._passing())
        y.addcmul_(weights.scale, self._matrix(self._moved_normal))
        return self._peaks.push(self._flat(y))

    def pull(self, weights: BlockWeights, delta: Tensor) -> None:
        """From the derivative by the output those by y, z and what lies between."""
        self._delta_y = self._matrix(self._peaks.pull(delta, "delta y"))
        self._delta_normal = self._flat(torch.mul(self._delta_y, weights.scale, out=self._room("delta normal")))
        self._delta_z = self._normal.times_jacobian(self._delta_normal)

    def pull_moved(self, weights: BlockWeights, moved_weights: BlockWeights, moved_delta: Tensor) -> None:
        """R{·} of the same from R{delta}."""
        self._moved_delta_y = self._matrix(self._peaks.pull(moved_delta, "moved delta y"))
        delta_normal = torch.mul(self._moved_delta_y, weights.scale, out=self._passing())
        delta_normal.addcmul_(self._delta_y, moved_weights.scale)
        self._moved_delta_z = self._normal.add_bend(
            self._normal.times_jacobian(self._flat(delta_normal)),
            self._moved_z, self._delta_normal, pushed=self._moved_normal, pulled=self._delta_z,
        )  # fmt: skip

    def gradient(self) -> list[Tensor]:
        """By kernel, bias, scale and shift, each [B, size]."""
        delta_z = self._matrix(self._delta_z)
        scaled = torch.mul(self._delta_y, self._normal_matrix, out=self._passing())
        kernel = self._kernel_gradient(delta_z)
        return [kernel.flatten(1), delta_z.sum(dim=1), scaled.sum(dim=1), self._delta_y.sum(dim=1)]

    def moved_gradient(self) -> list[Tensor]:
        """R{·} of the same."""
        moved_delta_z = self._matrix(self._moved_delta_z)
        scaled = torch.mul(self._moved_delta_y, self._normal_matrix, out=self._passing())
        scaled.addcmul_(self._delta_y, self._matrix(self._moved_normal))
        kernel = self._kernel_gradient(moved_delta_z)
        if not self._first:
            kernel.baddbmm_(self._matrix(self._delta_z).mT, self._moved_columns)
        return [kernel.flatten(1), moved_delta_z.sum(dim=1), scaled.sum(dim=1), self._moved_delta_y.sum(dim=1)]

    def below(self, turned: Tensor) -> Tensor:
        """The derivative by the input [B · n, pixels · channels], by the turned kernel."""
        return self._flat(torch.bmm(self._unfold_delta(self._delta_z), turned.mT, out=self._room_below("delta below")))

    def moved_below(self, turned: Tensor, moved_turned: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative by the input, and R{·} of it."""
        columns = self._unfold_delta(self._delta_z)
        delta = torch.bmm(columns, turned.mT, out=self._room_below("delta below"))
        moved = torch.bmm(columns, moved_turned.mT, out=self._room_below("moved delta below"))
        moved.baddbmm_(self._unfold_delta(self._moved_delta_z), turned.mT)
        return self._flat(delta), self._flat(moved)

    def _kernel_gradient(self, delta_z: Tensor) -> Tensor:
        """[B, filters, 9 · channels]; of the few columns of a first block transposed, which is faster there."""
        if self._first:
            return torch.bmm(self._columns.mT, delta_z).mT
        return torch.bmm(delta_z.mT, self._columns)

    def _flat(self, matrix: Tensor) -> Tensor:
        """[B · n, pixels · channels] of [B, n · pixels, channels]."""
        return matrix.view(self._pictures, -1)

    def _matrix(self, rows: Tensor) -> Tensor:
        """[B, n · pixels, filters] of [B · n, pixels · filters]."""
        return rows.view(self._batch, -1, self.shape.filters)

    def _room(self, name: str) -> Tensor:
        return self._scratch(name, *self._columns.shape[:2], self.shape.filters)

    def _passing(self) -> Tensor:
        """To be read at once, since many a result is written there."""
        return self._room("passing")

    def _room_below(self, name: str) -> Tensor:
        return self._scratch(name, *self._columns.shape[:2], self.shape.channels)
