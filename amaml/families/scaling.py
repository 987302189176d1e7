"""Standardisation: inputs and targets in units of the training tasks' mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations of each feature: x [d], y [o], or one number for all features. Both directions work on torch
    tensors and numpy arrays whose last axis is the feature."""

    x_mean: tuple[float, ...]
    x_std: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_std: tuple[float, ...]

    def standardise_x(self, x: Any) -> Any:
        """Raw inputs → standardised."""
        return (x - _like(self.x_mean, x)) / _like(self.x_std, x)

    def standardise_y(self, y: Any) -> Any:
        """Raw targets → standardised."""
        return (y - _like(self.y_mean, y)) / _like(self.y_std, y)

    def raw_y(self, y: Any) -> Any:
        """Standardised targets, or a network's predictions → raw."""
        return y * _like(self.y_std, y) + _like(self.y_mean, y)


def _like(values: tuple[float, ...], other: Any) -> Any:
    """The values as an array or tensor of the other's kind, dtype and device."""
    if isinstance(other, np.ndarray):
        return np.asarray(values, dtype=other.dtype)
    return other.new_tensor(values)


class Moments:
    """Mean and standard deviation of each column over blocks of rows, one block at a time."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Array = np.zeros(())
        self._squares: Array = np.zeros(())

    def add(self, rows: Array) -> None:
        """Adds a block [n, columns], by Chan's update."""
        count, mean = len(rows), rows.mean(axis=0)
        total, shift = self._count + count, mean - self._mean
        self._squares = self._squares + ((rows - mean) ** 2).sum(axis=0) + shift**2 * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(float(value) for value in np.sqrt(self._squares / self._count))
