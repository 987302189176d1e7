"""What a job will cost, roughly, from its spec alone: evaluations of the flow, arithmetic, memory.

Counts of fixed-step solvers are exact. Those of adaptive ones, and the speed, are what was measured on CosMixture with an
MLP of 1,153 parameters on two cores: another family, network or machine may well differ by a factor of three.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from pydantic import BaseModel, ConfigDict

from amaml.spec import (
    FomamlSpec,
    ImamlSpec,
    JobSpec,
    Maml1Spec,
    MamlSpec,
    MLPSpec,
    RandomSpec,
    ReptileSpec,
    SolverSpec,
    SyntheticFamilySpec,
)

_STAGES: Final = {
    "euler": 1, "heun": 2, "rk4": 4, "midpoint": 2, "heun2": 2, "heun3": 3, "explicit_adams": 1, "implicit_adams": 2,
}  # fmt: skip
# Adaptive solvers at tolerance 1e-6: (gradients, Hessian-vector products) of a task at T=0, and more for each unit of T.
_AT_START: Final = (31.0, 47.0)
_PER_LENGTH: Final = (68.0, 79.0)
_FORWARD_SHARE: Final = 1 / 3
"""Of those gradients, what the way forward takes where no adjoint follows, nor its guard."""
_ORDER: Final = {"bosh3": 3, "dopri5": 5, "dopri8": 8, "adaptive_heun": 2, "fehlberg2": 2}
_REFERENCE_TOLERANCE: Final = 1e-6

# Floating-point operations a parameter and data point: a gradient is three passes of a multiplication and an addition.
_GRADIENT_FLOPS: Final = 6.0
_HVP_FLOPS: Final = 12.0
_FLOPS_PER_SECOND: Final = {"float32": 2e10, "float64": 1e10}
_BYTES: Final = {"float32": 4, "float64": 8}
_PROCESS_BYTES: Final = 400_000_000
"""Python, torch and its libraries."""


class Estimate(BaseModel):
    """Roughly; null where the family or model isn't one of the built-in ones."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    parameters: int | None
    """How many numbers θ has."""
    gradients: int
    """Forward evaluations of the flow in the whole training, all tasks together."""
    hvps: int
    """Hessian-vector products in the whole training, all tasks together."""
    seconds: float | None
    """On two processor cores, evaluations included."""
    memory_bytes: int | None
    basis: str


BASIS: Final = (
    "Counts of fixed-step solvers are exact; those of adaptive ones, seconds and memory are extrapolated from "
    "measurements on two cores, and may differ by a factor of three."
)


def estimate(spec: JobSpec) -> Estimate:
    gradients, hvps = _method_evaluations(spec)
    solves = spec.meta.iterations * spec.meta.tasks_per_batch
    parameters = _parameters(spec)
    return Estimate(
        parameters=parameters,
        gradients=round(gradients * solves),
        hvps=round(hvps * solves),
        seconds=None if parameters is None else _seconds(spec, parameters, gradients, hvps),
        memory_bytes=None if parameters is None else _memory(spec, parameters, gradients),
        basis=BASIS,
    )


def _mean_length(spec: JobSpec) -> float:
    """T, averaged over the iterations."""
    trajectory = spec.trajectory
    if trajectory.horizons is not None:
        return trajectory.horizons[-1].at
    if trajectory.schedule is None:
        return trajectory.length
    iterations = spec.meta.iterations
    starts = [0, *(min(start, iterations) for start, _ in trajectory.schedule), iterations]
    lengths = [trajectory.length, *(length for _, length in trajectory.schedule)]
    stretches = zip(lengths, starts[:-1], starts[1:], strict=True)
    return sum(length * (end - start) for length, start, end in stretches) / iterations


def _evaluations(solver: SolverSpec, length: float) -> tuple[float, float]:
    """(gradients, Hessian-vector products) of one task's solve and its adjoint."""
    if solver.kind in _STAGES:
        steps = max(1, round(length / (solver.step or 0.01)))
        evaluations = float(steps * _STAGES[solver.kind])
        return evaluations, evaluations
    finer = max(0.5, (_REFERENCE_TOLERANCE / solver.rtol) ** (1 / _ORDER[solver.kind]))
    gradients, hvps = ((start + more * length) * finer for start, more in zip(_AT_START, _PER_LENGTH, strict=True))
    return gradients, hvps


def _method_evaluations(spec: JobSpec) -> tuple[float, float]:
    """(gradients, Hessian-vector products) that the method takes for one task in a meta-iteration."""
    gradients, hvps = _evaluations(spec.solver, _mean_length(spec))
    forward = gradients if spec.solver.kind in _STAGES else _FORWARD_SHARE * gradients
    match spec.method:
        case MamlSpec(steps=int() as steps) | Maml1Spec(steps=steps):
            return steps, steps
        case FomamlSpec() | ReptileSpec():
            return forward, 0
        case ImamlSpec(cg_steps=steps):
            return forward, steps
        case RandomSpec():
            return 0, 0
        case _:
            return gradients, hvps


def _parameters(spec: JobSpec) -> int | None:
    inputs = (
        {"sinusoid": 1}.get(spec.family.kind)
        or getattr(spec.family, "dim", None)
        or getattr(spec.family, "items", None)
    )
    if inputs is None or not isinstance(spec.model, MLPSpec):
        return None
    widths = [inputs, *spec.model.hidden, 1]
    return sum((before + 1) * after for before, after in pairwise(widths))


def _seconds(spec: JobSpec, parameters: int, gradients: float, hvps: float) -> float:
    shots = getattr(spec.family, "shots", 100)
    solve = (_GRADIENT_FLOPS * gradients + _HVP_FLOPS * hvps) * parameters * shots
    flow = _GRADIENT_FLOPS * _evaluations(spec.solver, _mean_length(spec))[0] * parameters * shots
    tuning = _GRADIENT_FLOPS * spec.evaluation.epochs * parameters * shots
    every = spec.meta.iterations if isinstance(spec.method, RandomSpec) else spec.evaluation.every
    evaluations = math.ceil(spec.meta.iterations / every)
    flops = solve * spec.meta.iterations * spec.meta.tasks_per_batch
    flops += (flow + tuning) * evaluations * spec.evaluation.tasks
    return round(flops / _FLOPS_PER_SECOND[spec.runtime.dtype], 1)


def _memory(spec: JobSpec, parameters: int, gradients: float) -> int:
    tasks = max(spec.meta.tasks_per_batch, spec.evaluation.tasks)
    points = getattr(spec.family, "shots", 100) + getattr(spec.family, "queries", 100)
    states = 2 * math.sqrt(gradients) * parameters
    activations = 8 * points * sum(spec.model.hidden) if isinstance(spec.model, MLPSpec) else 0
    pools = 2_000 * getattr(spec.family, "dim", 1) * (getattr(spec.family, "train_tasks", None) or 0)
    synthetic = pools if isinstance(spec.family, SyntheticFamilySpec) else 0
    return round(_PROCESS_BYTES + _BYTES[spec.runtime.dtype] * (tasks * (states + activations) + synthetic))
