"""A rough estimate, from the spec alone, of what a job will cost: evaluations of the flow, arithmetic, memory.

Counts of fixed-step solvers are exact. Those of adaptive ones, and the speed, are what was measured on CosMixture with an
MLP of 1,153 parameters on two cores: another family, network or machine may well differ by a factor of three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from amaml.spec import (
    Conv4Spec,
    FamilySpec,
    FomamlSpec,
    ImagesSpec,
    ImamlSpec,
    JobSpec,
    Maml1Spec,
    MamlSpec,
    MLPSpec,
    PoissonSpec,
    RandomSpec,
    RatingsSpec,
    ReptileSpec,
    SinusoidSpec,
    SolverSpec,
    SyntheticFamilySpec,
    TableSpec,
)
from amaml.spec.families import POOL

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

_DIGITS: Final = (1, 8, 8)
"""The built-in images' channels, height and width."""
# Floating-point operations a multiplication of one data point's forward pass (in an MLP, a parameter): a gradient is three
# passes of a multiplication and an addition.
_GRADIENT_FLOPS: Final = 6.0
_HVP_FLOPS: Final = 12.0
_FLOPS_PER_SECOND: Final = {"float32": 2e10, "float64": 1e10}
_RESIDUAL: Final = {1: 6.0, 2: 13.0}
"""How much more a physics-informed loss takes, whose residual differentiates the network twice along each coordinate."""
# Where derivatives are traced, a call on a whole batch takes so long before its arithmetic counts: (gradient, HVP).
_TRACED_SECONDS: Final = (1.2e-3, 2e-3)
_RESIDUAL_SECONDS: Final = {1: (3e-3, 6e-3), 2: (5e-3, 11e-3)}
_CONV4_SECONDS: Final = (5e-3, 12e-3)
_GUARD_HVPS: Final = 13
"""Hessian-vector products that a fixed-step solver's guard takes to estimate λmax, in a solve of some dozen steps."""
_CONV4_SLOWER: Final = 4.0
"""A convolution's operations beside those of a matrix product."""
_BYTES: Final = {"float32": 4, "float64": 8}
_PROCESS_BYTES: Final = 400_000_000
"""Python, torch and its libraries."""


BASIS: Final = (
    "Counts of fixed-step solvers are exact; those of adaptive ones, seconds and memory are extrapolated from "
    "measurements on two cores, and may differ by a factor of three."
)


class Estimate(BaseModel):
    """A rough estimate. Members are null if the family or the model isn't built in, and for uploaded images, whose size the spec
    doesn't say. For a table all inputs are assumed to be numbers, and two classes."""

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
    parameters = _parameters(spec)
    return Estimate(
        parameters=parameters,
        gradients=round(sum(phase.gradients * phase.solves for phase in phases)),
        hvps=round(sum(phase.hvps * phase.solves for phase in phases)),
        seconds=None if parameters is None else _seconds(spec, phases, parameters),
        memory_bytes=None if parameters is None else _memory(spec, parameters, max(one.gradients for one in phases)),
        basis=BASIS,
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


def _sizes(family: FamilySpec) -> tuple[int, int] | None:
    """Numbers of the network's inputs and outputs; None if they depend on the data."""
    match family:
        case SinusoidSpec():
            return 1, 1
        case RatingsSpec(items=items):
            return items, 1
        case TableSpec(inputs=inputs, targets=targets):
            return len(inputs), 2 if family.classify else len(targets)
        case ImagesSpec(dataset="digits", ways=ways):
            return math.prod(_DIGITS), ways
        case SyntheticFamilySpec():
            return getattr(family, "dim", 1), 1
    return None


def _parameters(spec: JobSpec) -> int | None:
    sizes = _sizes(spec.family)
    match spec.model:
        case MLPSpec(hidden=hidden) if sizes is not None:
            return sum((before + 1) * after for before, after in pairwise([sizes[0], *hidden, sizes[1]]))
        case Conv4Spec(filters=filters) if sizes is not None:
            return sum((9 * before + 3) * filters for before, _ in _conv4_layers(filters)) + (filters + 1) * sizes[1]
    return None


def _conv4_layers(filters: int) -> list[tuple[int, int]]:
    """For each block on the built-in images: its input channels, and the pixels that it convolves. The last leaves one pixel."""
    _, height, width = _DIGITS
    pixels = [height * width, height * width // 4, height * width // 16, height * width // 16]
    return [(channels, size) for channels, size in zip([_DIGITS[0], filters, filters, filters], pixels, strict=True)]


def _multiplications(spec: JobSpec, parameters: int) -> float:
    """Multiplications in one data point's forward pass, as if all were those of a matrix product."""
    if isinstance(spec.model, Conv4Spec):
        layers = _conv4_layers(spec.model.filters)
        return _CONV4_SLOWER * sum(9 * before * spec.model.filters * pixels for before, pixels in layers)
    return parameters


def _support_points(family: FamilySpec) -> int:
    shots: int = getattr(family, "shots", 100)
    match family:
        case ImagesSpec(ways=ways):
            return shots * ways
        case PoissonSpec(dim=dim, boundary=boundary):
            return shots + (2 if dim == 1 else 4 * boundary)
    return shots


def _query_points(family: FamilySpec) -> int:
    queries: int | str = getattr(family, "queries", 100)
    if not isinstance(queries, int):
        return POOL
    return queries * family.ways if isinstance(family, ImagesSpec) else queries


def _seconds(spec: JobSpec, phases: list[_Phase], parameters: int) -> float:
    work = _multiplications(spec, parameters) * _support_points(spec.family)
    if isinstance(spec.family, PoissonSpec):
        work *= _RESIDUAL[spec.family.dim]
    flow = _GRADIENT_FLOPS * _evaluations(spec.solver, _mean_length(spec))[0] * work
    tuning = _GRADIENT_FLOPS * spec.evaluation.epochs * work
    evaluations = 1 + math.ceil(spec.meta.iterations / spec.evaluation.every)  # the start's too
    if isinstance(spec.method, RandomSpec):
        evaluations = 1
    flops = work * sum((_GRADIENT_FLOPS * one.gradients + _HVP_FLOPS * one.hvps) * one.solves for one in phases)
    flops += (flow + tuning) * evaluations * spec.evaluation.tasks
    gradient, hvp = _call_seconds(spec)
    calls = 0.0
    for one in phases:
        guard_hvps = _GUARD_HVPS if one.hvps and one.spec.solver.guard and one.spec.solver.kind in _STAGES else 0
        calls += len(one.iterations) * (one.gradients * gradient + (one.hvps + guard_hvps) * hvp)
    calls += evaluations * (_evaluations(spec.solver, _mean_length(spec))[0] + spec.evaluation.epochs) * gradient
    return round(flops / _FLOPS_PER_SECOND[spec.runtime.dtype] + calls, 1)


def _call_seconds(spec: JobSpec) -> tuple[float, float]:
    """Overhead of a call for a gradient and for an HVP; 0 where they are written out, as for an MLP that regresses."""
    if isinstance(spec.model, Conv4Spec):
        return _CONV4_SECONDS
    match spec.family:
        case PoissonSpec(dim=dim):
            return _RESIDUAL_SECONDS[dim]
        case ImagesSpec() | TableSpec(classify=True):
            return _TRACED_SECONDS
    return 0.0, 0.0


def _memory(spec: JobSpec, parameters: int, gradients: float) -> int:
    tasks = max(spec.meta.tasks_per_batch, spec.evaluation.tasks)
    points = _support_points(spec.family) + _query_points(spec.family)
    states = 2 * math.sqrt(gradients) * parameters
    activations = 8 * points * _activations(spec)
    pools = 2_000 * getattr(spec.family, "dim", 1) * (getattr(spec.family, "train_tasks", None) or 0)
    synthetic = pools if isinstance(spec.family, SyntheticFamilySpec) else 0
    return round(_PROCESS_BYTES + _BYTES[spec.runtime.dtype] * (tasks * (states + activations) + synthetic))


def _activations(spec: JobSpec) -> int:
    """How many activations one data point's forward pass stores."""
    match spec.model:
        case MLPSpec(hidden=hidden):
            return sum(hidden)
        case Conv4Spec(filters=filters):
            return sum(filters * pixels for _, pixels in _conv4_layers(filters))
    return 0
