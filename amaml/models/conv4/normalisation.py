"""Normalisation of rows to mean 0 and variance 1, with its first and second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vecdot

EPSILON = 1e-5
"""The number ε added to the variance, as in torch's GroupNorm."""


class Normalised:
    """The normalised rows `value` = (x − mean)/√(variance + ε) [S, N] of x [S, N]. Each row's Jacobian J is symmetric."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._size = x, x.shape[1]
        self.value, self._mean, self._scale = torch.native_layer_norm(x, [self._size], None, None, EPSILON)

    def times_jacobian(self, v: Tensor) -> Tensor:
        """The product J v [S, N] with v [S, N]."""
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            v, self._x, [self._size], self._mean, self._scale, None, None, [True, False, False]
        )[0]
        return found

    def add_moved_jacobian(
        self, out: Tensor, moved: Tensor, slope: Tensor, *, j_moved: Tensor, j_slope: Tensor
    ) -> Tensor:
        """Adds R{J} slope to `out`, where R{·} is the derivative along R{x} = `moved`, `j_moved` = J moved and `j_slope` = J
        slope.

        With ⟨·⟩ for a row's mean, s for its 1/√(variance + ε) and y for its value: J v = s·(v − ⟨v⟩ − y⟨y v⟩), R{s} = −s²⟨y
        moved⟩ and R{y} = J moved.
        """
        s = self._scale / self._size
        out.addcmul_(j_slope, s * vecdot(self.value, moved)[:, None], value=-1)
        out.addcmul_(j_moved, s * vecdot(self.value, slope)[:, None], value=-1)
        return out.addcmul_(self.value, s * vecdot(j_moved, slope)[:, None], value=-1)
