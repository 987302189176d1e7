"""Reused memory for intermediate results."""

from __future__ import annotations

from torch import Tensor


class Scratch:
    """Tensors by name, initially zero, that are reused on every call: they are still in the processor's cache, while writing into
    fresh memory would take twice as long."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._tensors = like, dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._like.new_zeros(shape)
        return self._tensors[name]
