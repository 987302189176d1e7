"""Alpine (arXiv 2110.08432, section 6.1): y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10| on [−10, 10]^d."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amaml.families.scaling import Array
from amaml.families.synthetic import SyntheticFamily
from amaml.spec import AlpineSpec


@dataclass(frozen=True)
class Alpine:
    """A task is a shift k_i a coordinate, each uniform on [−5, 5]."""

    dim: int
    low: float = -10.0
    high: float = 10.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform(-5.0, 5.0, self.dim)

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        values: Array = np.abs(x * np.sin(x + np.pi + coefficients * np.pi / 12) + x / 10).sum(axis=1)
        return values


def build(
    spec: AlpineSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    datasets: Mapping[str, Path],  # noqa: ARG001 - every family is built alike
) -> SyntheticFamily:
    """The spec's family."""
    return SyntheticFamily(Alpine(spec.dim), spec, spec.train_tasks, seed=seed, dtype=dtype, device=device)
