"""Norms of every parameter tensor's part of flat vectors, of each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SCALE = 1e-3
"""Of the whole vector's: a tensor that starts at zero, as biases often do, has no size of its own."""


class TensorNorms:
    """Of vectors [A, P] that hold tensors of these `sizes` one after another: the norm of each tensor's part, [A, J]."""

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        number = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), torch.tensor(sizes, device="cpu"))
        self._membership = torch.nn.functional.one_hot(number, len(sizes)).to(like)

    def __call__(self, v: Tensor) -> Tensor:
        """Relative to the largest entry, so that the squares of tiny numbers don't vanish."""
        largest = v.abs().amax(dim=1, keepdim=True)
        relative = v / torch.where(largest > 0, largest, 1.0)
        return (relative.square() @ self._membership).sqrt_() * largest


def scales(theta: Tensor, sizes: Sequence[int]) -> Tensor:
    """The size that every entry of θ [P] is measured by, where an absolute tolerance is asked for: the root mean square of its
    tensor, at least a thousandth of the whole vector's; 1 where θ is zero."""
    whole = theta.square().mean().sqrt()
    if whole == 0:
        return torch.ones_like(theta)
    least = LEAST_SCALE * whole
    parts = theta.split(list(sizes))
    # Not by repeat_interleave, which would start PyTorch's threads for these few numbers.
    return torch.cat(
        [torch.maximum(part.square().mean().sqrt(), least).expand(len(part)) for part in parts if len(part)]
    )
