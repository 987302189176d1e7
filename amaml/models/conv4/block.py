"""One block of the convolutional network, with its parts of the network's gradient and Hessian-vector product."""

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
    """The order of the pixels inside a block in which its maximum reads them fastest."""
    return (by_corners if shape.halved else by_rows)(shape.height, shape.width)


class BlockWeights(NamedTuple):
    """A block's weights for B tasks. Unfolded pictures are multiplied by the transposes of the matrices."""

    kernel: Tensor
    """The convolution's kernel [B, filters, 9 · channels]."""
    bias: Tensor
    """The convolution's bias [B, 1, filters]."""
    scale: Tensor
    """The factor after the normalisation [B, 1, filters]."""
    shift: Tensor
    """The summand after the normalisation [B, 1, filters]."""
    turned: Tensor | None
    """The kernel turned by 180° [B, channels, 9 · filters], for the backward pass; None in the first block."""


def unfolded(shape: BlockShape, x: Tensor) -> Tensor:
    """The first block's unfolded input [B, n · pixels, 9 · channels] for pictures x [B, n, channels · height · width]."""
    picture = shape.channels, shape.height, shape.width
    unfold = Unfolding(x, (x.shape[0], x.shape[1]), picture, source=by_rows(*picture[1:]), target=_order(shape))
    return unfold(x.unflatten(2, (shape.channels, -1)).mT)


class Block:
    """Convolution, normalisation, ReLU and, where `halved`, 2 × 2 max pooling, of n pictures of each of B tasks.

    Pictures are rows [B · n, pixels · channels], with the pixels in row-major order. The input of the first block never changes,
    so it is given unfolded, as `columns`. A `moved` quantity is the derivative along a direction of the parameters (Pearlmutter's
    R{·}), a `delta` the derivative of the loss by the quantity. Each method uses the results of those above it, which must have
    been called at the same weights.
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
        """The block's output [B · n, outputs · filters] for the input `a`, which the first block doesn't read."""
        if not self._first:
            self._columns = self._unfold(a)
        z = torch.baddbmm(weights.bias, self._columns, weights.kernel.mT, out=self._room("z"))
        self._normal = Normalised(self._flat(z))
        self._normal_matrix = self._matrix(self._normal.value)
        y = torch.addcmul(weights.shift, weights.scale, self._normal_matrix, out=self._temporary())
        return self._peaks(self._flat(y))

    def forward_moved(self, weights: BlockWeights, moved_weights: BlockWeights, moved: Tensor) -> Tensor:
        """R{output} from R{a}, which the first block doesn't read, since it is zero there."""
        z = torch.baddbmm(moved_weights.bias, self._columns, moved_weights.kernel.mT, out=self._room("moved z"))
        if not self._first:
            self._moved_columns = self._unfold_moved(moved)
            z.baddbmm_(self._moved_columns, weights.kernel.mT)
        self._moved_z = self._flat(z)
        self._moved_normal = self._normal.times_jacobian(self._moved_z)
        y = torch.addcmul(moved_weights.shift, moved_weights.scale, self._normal_matrix, out=self._temporary())
        y.addcmul_(weights.scale, self._matrix(self._moved_normal))
        return self._peaks.jvp(self._flat(y))

    def backward(self, weights: BlockWeights, delta: Tensor) -> None:
        """Computes, from the derivative of the loss by the output, those by y, the normalised z, and z."""
        self._delta_y = self._matrix(self._peaks.vjp(delta, "delta y"))
        self._delta_normal = self._flat(torch.mul(self._delta_y, weights.scale, out=self._room("delta normal")))
        self._delta_z = self._normal.times_jacobian(self._delta_normal)

    def backward_moved(self, weights: BlockWeights, moved_weights: BlockWeights, moved_delta: Tensor) -> None:
        """Computes R{·} of the derivatives of `backward` from R{delta}."""
        self._moved_delta_y = self._matrix(self._peaks.vjp(moved_delta, "moved delta y"))
        delta_normal = torch.mul(self._moved_delta_y, weights.scale, out=self._temporary())
        delta_normal.addcmul_(self._delta_y, moved_weights.scale)
        self._moved_delta_z = self._normal.add_moved_jacobian(
            self._normal.times_jacobian(self._flat(delta_normal)),
            self._moved_z, self._delta_normal, j_moved=self._moved_normal, j_slope=self._delta_z,
        )  # fmt: skip

    def gradient(self) -> list[Tensor]:
        """The gradient of the loss by kernel, bias, scale and shift, each [B, size]."""
        delta_z = self._matrix(self._delta_z)
        scaled = torch.mul(self._delta_y, self._normal_matrix, out=self._temporary())
        kernel = self._kernel_gradient(delta_z)
        return [kernel.flatten(1), delta_z.sum(dim=1), scaled.sum(dim=1), self._delta_y.sum(dim=1)]

    def moved_gradient(self) -> list[Tensor]:
        """R{·} of each part of `gradient`."""
        moved_delta_z = self._matrix(self._moved_delta_z)
        scaled = torch.mul(self._moved_delta_y, self._normal_matrix, out=self._temporary())
        scaled.addcmul_(self._delta_y, self._matrix(self._moved_normal))
        kernel = self._kernel_gradient(moved_delta_z)
        if not self._first:
            kernel.baddbmm_(self._matrix(self._delta_z).mT, self._moved_columns)
        return [kernel.flatten(1), moved_delta_z.sum(dim=1), scaled.sum(dim=1), self._moved_delta_y.sum(dim=1)]

    def below(self, turned: Tensor) -> Tensor:
        """The derivative of the loss by the input [B · n, pixels · channels], computed with the turned kernel."""
        return self._flat(torch.bmm(self._unfold_delta(self._delta_z), turned.mT, out=self._room_below("delta below")))

    def moved_below(self, turned: Tensor, moved_turned: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative of the loss by the input, and R{·} of it, each [B · n, pixels · channels]."""
        columns = self._unfold_delta(self._delta_z)
        delta = torch.bmm(columns, turned.mT, out=self._room_below("delta below"))
        moved = torch.bmm(columns, moved_turned.mT, out=self._room_below("moved delta below"))
        moved.baddbmm_(self._unfold_delta(self._moved_delta_z), turned.mT)
        return self._flat(delta), self._flat(moved)

    def _kernel_gradient(self, delta_z: Tensor) -> Tensor:
        """The gradient by the kernel [B, filters, 9 · channels]. The first block, with its few columns, computes its transpose,
        which is faster there."""
        if self._first:
            return torch.bmm(self._columns.mT, delta_z).mT
        return torch.bmm(delta_z.mT, self._columns)

    def _flat(self, matrix: Tensor) -> Tensor:
        """A view [B · n, pixels · channels] of a matrix [B, n · pixels, channels]."""
        return matrix.view(self._pictures, -1)

    def _matrix(self, rows: Tensor) -> Tensor:
        """A view [B, n · pixels, filters] of rows [B · n, pixels · filters]."""
        return rows.view(self._batch, -1, self.shape.filters)

    def _room(self, name: str) -> Tensor:
        return self._scratch(name, *self._columns.shape[:2], self.shape.filters)

    def _temporary(self) -> Tensor:
        """Memory for a result that must be read before the next one is written there."""
        return self._room("temporary")

    def _room_below(self, name: str) -> Tensor:
        return self._scratch(name, *self._columns.shape[:2], self.shape.channels)
