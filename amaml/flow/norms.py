"""Norms of flat vectors, separately for the part of each parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SCALE = 1e-3
"""The least scale of a tensor as a fraction of the whole vector's: a tensor that starts at zero, as biases often do, gives
none."""


class TensorNorms:
    """The norms [A, J] of the parts of vectors [A, P] that hold J tensors of these `sizes` one after another."""

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        number = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), torch.tensor(sizes, device="cpu"))
        self._membership = torch.nn.functional.one_hot(number, len(sizes)).to(like)

    def __call__(self, v: Tensor) -> Tensor:
        """Computed relative to the largest entry, so that squares of tiny numbers don't underflow."""
        largest = v.abs().amax(dim=1, keepdim=True)
        relative = v / torch.where(largest > 0, largest, 1.0)
        return (relative.square() @ self._membership).sqrt_() * largest


def scales(theta: Tensor, sizes: Sequence[int]) -> Tensor:
    """The scale [P] that the absolute tolerance of every entry of θ [P] is multiplied by: the root mean square of its tensor, at
    least a thousandth of the whole vector's; 1 where θ is zero."""
    whole = theta.square().mean().sqrt()
    if whole == 0:
        return torch.ones_like(theta)
    least = LEAST_SCALE * whole
    parts = theta.split(list(sizes))
    # repeat_interleave would start PyTorch's threads for these few numbers.
    return torch.cat(
        [torch.maximum(part.square().mean().sqrt(), least).expand(len(part)) for part in parts if len(part)]
    )
