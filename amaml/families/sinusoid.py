"""Sinusoids (Finn, Abbeel, Levine, arXiv 1703.03400, section 5.1): y = a sin(x − φ) on [−5, 5]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amaml.families.scaling import Array
from amaml.families.synthetic import SyntheticFamily
from amaml.spec import SinusoidSpec


@dataclass(frozen=True)
class Sinusoid:
    """A task is an amplitude and a phase (a, φ), uniform on [.1, 5] and [0, π]."""

    dim: int = 1
    low: float = -5.0
    high: float = 5.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform([0.1, 0.0], [5.0, np.pi])

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        amplitude, phase = coefficients
        values: Array = amplitude * np.sin(x[:, 0] - phase)
        return values


def build(
    spec: SinusoidSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    datasets: Mapping[str, Path],  # noqa: ARG001 - every family is built alike
) -> SyntheticFamily:
    """The spec's family."""
    return SyntheticFamily(Sinusoid(), spec, spec.train_tasks, seed=seed, dtype=dtype, device=device)
