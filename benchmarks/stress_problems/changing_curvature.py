"""Curvature that changes on the way, with a closed form of its integral."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor

from benchmarks.stress_problems.problem import (
    TASKS,
    StressProblem,
    Tensors,
    an_adaptive_solver,
    log_uniform,
)


def late_stiffness(rng: np.random.Generator) -> StressProblem:
    """A parameter moves at speed 1; when it passes a certain value, the curvature of another, which is at rest, rises."""
    place, width, height = float(rng.uniform(0.2, 1.2)), log_uniform(rng, 0.005, 0.3), log_uniform(rng, 3.0, 300.0)

    def curvature(s: Tensor) -> Tensor:
        return 1 + height * torch.sigmoid((s - place) / width)

    ends = np.logaddexp(0, (1.3 - place) / width) - np.logaddexp(0, -place / width)
    return _drifting(rng, curvature, 1.3 + height * width * float(ends))


def bump(rng: np.random.Generator) -> StressProblem:
    """The same, but the curvature rises and falls again."""
    place, width, height = float(rng.uniform(0.2, 1.1)), log_uniform(rng, 0.01, 0.3), log_uniform(rng, 3.0, 300.0)

    def curvature(s: Tensor) -> Tensor:
        return 1 + height * torch.exp(-((s - place) / width).square())

    area = height * width * math.sqrt(math.pi) / 2 * (erf((1.3 - place) / width) + erf(place / width))
    return _drifting(rng, curvature, 1.3 + float(area))


def _drifting(rng: np.random.Generator, curvature: Callable[[Tensor], Tensor], decay: float) -> StressProblem:
    others = torch.linspace(0.5, 3, int(rng.integers(1, 50)), dtype=torch.float64)

    def support(u: Tensor, _: Tensors) -> Tensor:
        return -u[0] + 0.5 * curvature(u[0]) * u[1].square() + 0.5 * (others * u[2:].square()).sum()

    def query(u: Tensor, _: Tensors) -> Tensor:
        return u[1]

    size = 2 + len(others)
    gradient = torch.zeros(size, dtype=torch.float64)
    gradient[1] = math.exp(-decay)
    theta, tasks = torch.zeros(size, dtype=torch.float64), {"": torch.zeros(TASKS, 1, dtype=torch.float64)}
    return StressProblem(theta, (support, query), tasks, {"length": 1.3, **an_adaptive_solver(rng)}, lambda _: gradient)
