"""A rough estimate, from the spec alone, of what a job will cost: evaluations of the flow, arithmetic, memory.

Counts of fixed-step solvers are exact. Those of adaptive ones, and the speed, are what was measured on CosMixture with an
MLP of 1,153 parameters on two cores: another family, network or machine may well differ by a factor of three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from amaml.families.cost import FamilyCost
from amaml.models.cost import ModelCost
from amaml.spec import (
    JobSpec,
    SolverSpec,
)

_STAGES: Final = {
    "euler": 1, "heun": 2, "rk4": 4, "midpoint": 2, "heun2": 2, "heun3": 3, "explicit_adams": 1, "implicit_adams": 2,
}  # fmt: skip
# Adaptive solvers at tolerance 1e-6: (gradients, Hessian-vector products) of a task at T=0, and more for each unit of T.
_AT_START: Final = (240.0, 175.0)
_PER_LENGTH: Final = (72.0, 38.0)
_FORWARD_SHARE: Final = 1 / 2
"""The share of those gradients that the forward solve takes, where no adjoint follows."""
_ORDER: Final = {"bosh3": 3, "dopri5": 5, "dopri8": 8, "adaptive_heun": 2, "fehlberg2": 2}
_REFERENCE_TOLERANCE: Final = 1e-6

# Floating-point operations a multiplication of one data point's forward pass (in an MLP, a parameter): a gradient is three
# passes of a multiplication and an addition.
_GRADIENT_FLOPS: Final = 6.0
_HVP_FLOPS: Final = 12.0
_FLOPS_PER_SECOND: Final = {"float32": 2e10, "float64": 1e10}
_GUARD_HVPS: Final = 13
"""Hessian-vector products that a fixed-step solver's guard takes to estimate λmax, in a solve of some dozen steps."""
_BYTES: Final = {"float32": 4, "float64": 8}
_PROCESS_BYTES: Final = 400_000_000
"""Python, torch and its libraries."""


BASIS: Final = (
    "Counts of fixed-step solvers are exact; those of adaptive ones, seconds and memory are extrapolated from "
    "measurements on two cores, and may differ by a factor of three."
)


class Estimate(BaseModel):
    """A rough estimate. Members are null if a package's family or model doesn't say what it costs, and for uploaded images, whose
    size the spec doesn't say. For a table all inputs are assumed to be numbers, and two classes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    parameters: int | None = Field(examples=[1_185])
    """How many numbers θ has."""
    gradients: int = Field(examples=[1_336_000])
    """Evaluations of the flow's gradient in the whole training, summed over tasks."""
    hvps: int = Field(examples=[1_640_000])
    """Hessian-vector products in the whole training, summed over tasks."""
    seconds: float | None = Field(examples=[168.5])
    """On two processor cores, including evaluations."""
    memory_bytes: int | None = Field(examples=[452_000_000])
    basis: str = Field(examples=[BASIS])


def estimate(spec: JobSpec) -> Estimate:
    phases = [_Phase(iterations, own, *_method_evaluations(own, iterations)) for iterations, own in spec.phases]
    counts: dict[str, Any] = {
        "gradients": round(sum(phase.gradients * phase.solves for phase in phases)),
        "hvps": round(sum(phase.hvps * phase.solves for phase in phases)),
        "basis": BASIS,
    }
    family = spec.family.cost()
    model = None if family is None else spec.model.cost(family.inputs, family.outputs, family.picture)
    if family is None or model is None:
        return Estimate(parameters=None, seconds=None, memory_bytes=None, **counts)
    return Estimate(
        parameters=model.parameters,
        seconds=_seconds(spec, phases, family, model),
        memory_bytes=_memory(spec, max(one.gradients for one in phases), family, model),
        **counts,
    )


@dataclass(frozen=True)
class _Phase:
    """A range of meta-iterations, and what one task costs in each of them."""

    iterations: range
    spec: JobSpec
    gradients: float
    hvps: float

    @property
    def solves(self) -> int:
        return len(self.iterations) * self.spec.meta.tasks_per_batch


def expected_seconds(spec: JobSpec) -> float | None:
    """The seconds that a quota counts: the estimate, but at most `runtime.max_seconds`; None if neither is known."""
    known = [one for one in (estimate(spec).seconds, spec.runtime.max_seconds) if one is not None]
    return float(min(known)) if known else None


def _mean_length(spec: JobSpec, iterations: range | None = None) -> float:
    """T, averaged over these meta-iterations (from 0); over all unless given."""
    trajectory = spec.trajectory
    if trajectory.horizons is not None:
        return trajectory.horizons[-1].at
    if trajectory.schedule is None:
        return trajectory.length
    first, end = (0, spec.meta.iterations) if iterations is None else (iterations.start, iterations.stop)
    starts = [first, *(max(first, min(start, end)) for start, _ in trajectory.schedule), end]
    lengths = [trajectory.length, *(length for _, length in trajectory.schedule)]
    intervals = zip(lengths, starts[:-1], starts[1:], strict=True)
    return sum(length * (stop - start) for length, start, stop in intervals) / (end - first)


def _evaluations(solver: SolverSpec, length: float) -> tuple[float, float]:
    """(gradients, Hessian-vector products) of one task's solve and its adjoint."""
    if solver.kind in _STAGES:
        steps = max(1, round(length / (solver.step or 0.01)))
        evaluations = float(steps * _STAGES[solver.kind])
        return evaluations, evaluations
    finer = max(0.5, (_REFERENCE_TOLERANCE / solver.rtol) ** (1 / _ORDER[solver.kind]))
    gradients, hvps = ((start + more * length) * finer for start, more in zip(_AT_START, _PER_LENGTH, strict=True))
    return gradients, hvps


def _method_evaluations(spec: JobSpec, iterations: range) -> tuple[float, float]:
    """(gradients, Hessian-vector products) that the method takes for one task in one of these meta-iterations."""
    gradients, hvps = _evaluations(spec.solver, _mean_length(spec, iterations))
    forward = gradients if spec.solver.kind in _STAGES else _FORWARD_SHARE * gradients
    return spec.method.evaluations(forward, gradients, hvps)


def _seconds(spec: JobSpec, phases: list[_Phase], family: FamilyCost, model: ModelCost) -> float:
    work = model.multiplications * family.support_points * family.passes
    flow = _GRADIENT_FLOPS * _evaluations(spec.solver, _mean_length(spec))[0] * work
    tuning = _GRADIENT_FLOPS * spec.evaluation.epochs * work
    evaluations = 1 + math.ceil(spec.meta.iterations / spec.evaluation.every)  # the start's too
    if not spec.method.trains:
        evaluations = 1
    flops = work * sum((_GRADIENT_FLOPS * one.gradients + _HVP_FLOPS * one.hvps) * one.solves for one in phases)
    flops += (flow + tuning) * evaluations * spec.evaluation.tasks
    gradient, hvp = map(max, family.call_seconds, model.call_seconds)
    calls = 0.0
    for one in phases:
        guard_hvps = _GUARD_HVPS if one.hvps and one.spec.solver.guard and one.spec.solver.kind in _STAGES else 0
        calls += len(one.iterations) * (one.gradients * gradient + (one.hvps + guard_hvps) * hvp)
    calls += evaluations * (_evaluations(spec.solver, _mean_length(spec))[0] + spec.evaluation.epochs) * gradient
    return round(flops / _FLOPS_PER_SECOND[spec.runtime.dtype] + calls, 1)


def _memory(spec: JobSpec, gradients: float, family: FamilyCost, model: ModelCost) -> int:
    tasks = max(spec.meta.tasks_per_batch, spec.evaluation.tasks)
    states = 2 * math.sqrt(gradients) * model.parameters
    activations = 8 * (family.support_points + family.query_points) * model.activations
    return round(_PROCESS_BYTES + _BYTES[spec.runtime.dtype] * (tasks * (states + activations) + family.numbers_held))
