"""The functions that tasks are drawn from, each with random coefficients on a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from amaml.families.scaling import Array


class Formula(Protocol):
    """A function with random coefficients on the box [low, high]^dim."""

    @property
    def dim(self) -> int: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...

    def draw(self, random: np.random.Generator) -> Array:
        """One task's coefficients [k]."""

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        """The task's values [n] at x [n, dim]."""


@dataclass(frozen=True)
class CosMixture:
    """Li et al. (arXiv 2110.08432, section 6.1): y = −c Σ cos(ωπx_i + φ) − Σ x_i² on [−1, 1]^d.

    A task is (c, φ, ω), uniform on [.1, 1], [.5, 2], [3, 6].
    """

    dim: int
    low: float = -1.0
    high: float = 1.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform([0.1, 0.5, 3.0], [1.0, 2.0, 6.0])

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        c, phase, frequency = coefficients
        values: Array = (-c * np.cos(frequency * np.pi * x + phase) - np.square(x)).sum(axis=1)
        return values


@dataclass(frozen=True)
class Alpine:
    """Li et al. (arXiv 2110.08432, section 6.1): y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10| on [−10, 10]^d.

    A task is a shift k_i a coordinate, each uniform on [−5, 5].
    """

    dim: int
    low: float = -10.0
    high: float = 10.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform(-5.0, 5.0, self.dim)

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        values: Array = np.abs(x * np.sin(x + np.pi + coefficients * np.pi / 12) + x / 10).sum(axis=1)
        return values


@dataclass(frozen=True)
class Sinusoid:
    """Finn, Abbeel, Levine (arXiv 1703.03400, section 5.1): y = a sin(x − φ) on [−5, 5].

    A task is an amplitude and a phase (a, φ), uniform on [.1, 5] and [0, π].
    """

    dim: int = 1
    low: float = -5.0
    high: float = 5.0

    def draw(self, random: np.random.Generator) -> Array:
        return random.uniform([0.1, 0.0], [5.0, np.pi])

    def __call__(self, coefficients: Array, x: Array, /) -> Array:
        amplitude, phase = coefficients
        values: Array = amplitude * np.sin(x[:, 0] - phase)
        return values
