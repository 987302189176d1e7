"""The test points of tasks that are functions."""

from __future__ import annotations

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from amaml.families.scaling import Array


def judged_points(dim: int, low: float, high: float) -> Array:
    """The test points of unseen tasks, [m, dim]: 200 on a line, a 32 × 32 grid on a square (borders included), and in
    higher dimensions 1024 points of a Sobol sequence, since a grid of them would be too large."""
    if dim == 1:
        unit = np.linspace(0, 1, 200)[:, None]
    elif dim == 2:
        axis = np.linspace(0, 1, 32)
        unit = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    else:
        unit = SobolEngine(dim).draw(1024, dtype=torch.float64).numpy()
    return low + (high - low) * unit
