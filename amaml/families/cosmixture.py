"""CosMixture (arXiv 2110.08432, section 6.1): y = −c Σ cos(ωπx_i + φ) − Σ x_i² on [−1, 1]^d."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amaml.families.scaling import Array
from amaml.families.synthetic import SyntheticFamily
from amaml.spec import CosMixtureSpec


@dataclass(frozen=True)
class CosMixture:
    """A task is (c, φ, ω), uniform on [.1, 1], [.5, 2], [3, 6]."""

    dim: int
    low: float = -1.0
    high: float = 1.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform([0.1, 0.5, 3.0], [1.0, 2.0, 6.0])

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        c, phase, frequency = coefficients
        values: Array = (-c * np.cos(frequency * np.pi * x + phase) - np.square(x)).sum(axis=1)
        return values


def build(
    spec: CosMixtureSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    datasets: Mapping[str, Path],  # noqa: ARG001 - every family is built alike
) -> SyntheticFamily:
    """The spec's family."""
    return SyntheticFamily(CosMixture(spec.dim), spec, spec.train_tasks, seed=seed, dtype=dtype, device=device)
