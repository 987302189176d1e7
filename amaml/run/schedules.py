"""The schedules of a run: the meta-optimizer's learning rate and the trajectory length as functions of the meta-iteration."""

from __future__ import annotations

import math

from amaml.spec import OptimizerSpec, TrajectorySpec

INVERSE_SQRT_AFTER = 1000
"""Meta-iterations after which the inverse square root schedule has fallen to 1/√2."""


def rate_factor(optimizer: OptimizerSpec, iteration: int, iterations: int) -> float:
    """The factor of the meta-optimizer's learning rate in this meta-iteration i (from 0): 1 (constant), 1/√(1 + i/1000)
    (inverse_sqrt) or half a cosine wave from 1 to 0 (cosine); during the warm-up, times a factor that rises linearly to 1."""
    warmth = min(1.0, (iteration + 1) / optimizer.warmup) if optimizer.warmup else 1.0
    match optimizer.schedule:
        case "constant":
            return warmth
        case "inverse_sqrt":
            return warmth / math.sqrt(1 + iteration / INVERSE_SQRT_AFTER)
        case "cosine":
            return warmth * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def length_at(trajectory: TrajectorySpec, iteration: int) -> float:
    """T in this meta-iteration (from 0): the last horizon, if there are horizons; otherwise the length of the last entry of the
    schedule that has begun, and `length` before the first entry."""
    if trajectory.horizons is not None:
        return trajectory.horizons[-1].at
    begun = [length for start, length in trajectory.schedule or [] if start <= iteration]
    return begun[-1] if begun else trajectory.length
