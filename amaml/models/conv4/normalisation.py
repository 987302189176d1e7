"""Rows normalised to mean 0 and variance 1, and what second derivatives take of that."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vecdot

EPSILON = 1e-5
"""Added to the variance, as torch's GroupNorm does."""


class Normalised:
    """x [S, N] → `value` [S, N], (x − mean)/√(variance + ε) of each row. Its Jacobian J is symmetric."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._size = x, x.shape[1]
        self.value, self._mean, self._scale = torch.native_layer_norm(x, [self._size], None, None, EPSILON)

    def times_jacobian(self, v: Tensor) -> Tensor:
        """J v."""
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            v, self._x, [self._size], self._mean, self._scale, None, None, [True, False, False]
        )[0]
        return found

    def add_bend(self, out: Tensor, moved: Tensor, slope: Tensor, *, pushed: Tensor, pulled: Tensor) -> Tensor:
        """out += R{J} slope, where x moves along `moved`; `pushed` is J moved, `pulled` is J slope.

        With ⟨·⟩ for a row's mean, s its 1/√(variance + ε) and y its value: J v = s·(v − ⟨v⟩ − y⟨y v⟩), R{s} = −s²⟨y moved⟩
        and R{y} = pushed.
        """
        s = self._scale / self._size
        out.addcmul_(pulled, s * vecdot(self.value, moved)[:, None], value=-1)
        out.addcmul_(pushed, s * vecdot(self.value, slope)[:, None], value=-1)
        return out.addcmul_(self.value, s * vecdot(pushed, slope)[:, None], value=-1)
