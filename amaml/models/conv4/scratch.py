"""Memory to write results into again and again."""

from __future__ import annotations

from torch import Tensor


class Scratch:
    """Tensors by name, the same every time: what was written last is still in the processor's cache, where fresh memory
    would take twice as long. Zero at first."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._tensors = like, dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._like.new_zeros(shape)
        return self._tensors[name]
