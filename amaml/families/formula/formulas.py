"""The formulas of the synthetic families: functions on a box with random coefficients."""

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
    """The function y = −c Σ cos(ωπx_i + φ) − Σ x_i² on [−1, 1]^d (Li et al., arXiv 2110.08432, section 6.1).

    A task's coefficients are (c, φ, ω), uniform on [0.1, 1], [0.5, 2] and [3, 6].
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
    """The function y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10| on [−10, 10]^d (Li et al., arXiv 2110.08432, section 6.1).

    A task's coefficients are one shift k_i for each coordinate, uniform on [−5, 5].
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
    """The function y = a sin(x − φ) on [−5, 5] (Finn, Abbeel, Levine, arXiv 1703.03400, section 5.1).

    A task's coefficients are its amplitude and phase (a, φ), uniform on [0.1, 5] and [0, π].
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
