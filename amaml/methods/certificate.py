"""Estimates the error of a meta-gradient with a solver that shares nothing with the one that computed it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml.flow.derivatives import Loss
from amaml.flow.solvers import FixedStep, Solver
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.memory import is_out_of_memory
from amaml.methods.parameters import Layout
from amaml.methods.problem import GradientProblem
from amaml.methods.tangent import (
    TINY,
    Array,
    Gradient,
    Tangents,
    Undecided,
    along_flow,
    along_map,
    gradient_of,
)
from amaml.models.losses import losses_in_float64
from amaml.modes import plain_modes

PROBES = 6
"""The number of random directions. With six, the error is underestimated by a factor of 10 about once in 100,000 times."""
FINEST, COARSEST = 1e-10, 1e-7
"""The bounds of the tolerance of the certificate's own solve, which is otherwise a tenth of the judged solver's. Below them,
rounding of the finite differences dominates; above them, steps would miss kinks and narrow features of the losses."""
WITHOUT_TOLERANCE = 1e-9
"""The tolerance of the certificate's own solve where the judged solver has none."""
MAP_ROUNDING = 1e-10
"""The relative rounding error of finite differences along a discrete map."""
LEAST_EVALUATIONS, EVALUATIONS, MOST_EVALUATIONS = 2_000, 2, 10_000
"""The budget of a certificate for one task, in evaluations of the flow and its tangents: 2,000, plus twice the evaluations of the
judged solve, but at most 10,000."""
DECIDED = 0.01
"""The largest relative uncertainty of the tangents with which a certificate still states an error. On stiff flows, tangents with
a larger uncertainty had even larger errors."""


@dataclass(frozen=True)
class Verdict:
    """The estimated error of one task's meta-gradient; see the fields of `Certificate`."""

    error: float
    duality: float
    reason: str | None


@dataclass(frozen=True)
class Certificate:
    """The estimated error of each task's meta-gradient."""

    error: Tensor
    """The estimate of ‖g − g*‖/‖g*‖ for each task [B], float64, where g* is the gradient of `Stats.target`. It includes the
    certificate's own uncertainty, and is infinite where the error can't be estimated."""
    duality: Tensor
    """The error without the certificate's own uncertainty [B]: the root mean square of ⟨g, v⟩ − dJ(θ; v) over the directions v,
    relative to that of dJ(θ; v)."""
    reasons: tuple[str | None, ...]
    """For each task, the sentence that says why its error is infinite; None where it is finite."""

    @staticmethod
    def of(verdicts: Sequence[Verdict]) -> Certificate:
        """The certificate of tasks with these verdicts, in the order of the tasks."""
        numbers = [(one.error, one.duality) for one in verdicts]
        reasons = [one.reason and f"task {number}: {one.reason}" for number, one in enumerate(verdicts)]
        errors, dualities = torch.tensor(numbers, dtype=torch.float64, device="cpu").unbind(dim=1)
        return Certificate(errors, dualities, tuple(reasons))


def verdicts(
    problem: GradientProblem,
    support_loss: Loss,
    query_loss: Loss,
    tasks: Any,
    layout: Layout,
    gradients: Tensor,
    evaluations: Tensor,
) -> Iterator[Verdict]:
    """Yields the verdict on each task's gradient, one at a time, since one may take seconds. `gradients` [B, P] are those of the
    problem; `evaluations` [B] are the evaluations of the flow that they took.

    In six random directions v, it compares ⟨g, v⟩ with the derivative of J along v that the tangent equation gives. For v with
    entries of N(0, 1) the mean of ⟨x, v⟩² is ‖x‖², so root mean squares over the directions estimate norms.

    Raises ValueError where the losses can't be evaluated in float64.
    """
    with plain_modes():
        support, query = losses_in_float64(support_loss, query_loss)
        precise = layout.in_float64()
    for index, spent in enumerate(evaluations.tolist()):
        with plain_modes():
            task = _one(tasks, index)
            slopes = gradient_of(support, task, precise), gradient_of(query, task, precise)
            budget = min(LEAST_EVALUATIONS + EVALUATIONS * int(spent), MOST_EVALUATIONS)
            verdict = _verdict(problem, *slopes, gradients[index].double().cpu().numpy(), budget)
        yield verdict


def _one(tasks: Any, index: int) -> Any:
    """The task with this index, in float64."""

    def one(leaf: Tensor) -> Tensor:
        return leaf[index].double() if leaf.is_floating_point() else leaf[index]

    return tree_map(one, tasks)


def _verdict(problem: GradientProblem, support: Gradient, query: Gradient, gradient: Array, budget: int) -> Verdict:
    """The verdict on one task's gradient [P]: an infinite error with the reason, where the error can't be estimated."""
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are checked where they matter
            return Verdict(*_error(problem, support, query, gradient, budget), None)
    except Undecided as error:
        return Verdict(math.inf, math.inf, str(error))
    except RuntimeError as error:  # the loss raised it, as PyTorch does
        if is_out_of_memory(error):
            raise
        if problem.theta.dtype != torch.float64 and "dtype" in str(error):
            raise ValueError(
                f"certify solves again in float64, but the losses hold float32 tensors of their own ({error}): pass them as "
                "part of tasks, or give params and losses in float64"
            ) from error
        return Verdict(math.inf, math.inf, f"the losses can't be evaluated in float64: {error}")


def _error(
    problem: GradientProblem, support: Gradient, query: Gradient, gradient: Array, budget: int
) -> tuple[float, float]:
    """The error and the duality of `Verdict`. Raises Undecided where the tangents can't be computed or are too uncertain."""
    tangents = _tangents(problem, support)
    if problem.target == "discrete":
        assert isinstance(problem.solver, FixedStep | TorchDiffEq)
        tolerance, ends = MAP_ROUNDING, along_map(tangents, problem.horizons, problem.solver)
    else:
        tolerance = _tolerance(problem.solver)
        ends = along_flow(tangents, problem.horizons, tolerance, budget)
    derivatives, uncertainties = _derivatives(problem, tangents, query, ends, tolerance)
    size = _rms(derivatives[:PROBES])
    mismatch = _rms((derivatives - tangents.directions @ gradient)[:PROBES])
    if size == 0 and mismatch == 0:
        return 0.0, 0.0
    if size == 0:
        raise Undecided("the meta-loss's derivative is 0 in every direction tried, but the gradient isn't 0")
    uncertainty = _rms(uncertainties[:PROBES]) + abs(derivatives[PROBES] - derivatives[0])
    if not uncertainty < DECIDED * size:
        raise Undecided(
            f"the certificate can't resolve so small a gradient: the uncertainty from its own tolerance ({tolerance:.0e}) and "
            f"finite differences is {uncertainty / size:.1g} of the gradient's size"
        )
    return float((mismatch + uncertainty) / size), float(mismatch / size)


def _tangents(problem: GradientProblem, support: Gradient) -> Tangents:
    """The tangents along six random directions, the same for every task, and along the first of them again with three times the
    finite-difference step: these two derivatives differ by eight times the truncation error of the first."""
    theta = problem.theta.double().cpu().numpy()
    drawn = torch.randn(
        PROBES, len(theta), dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(1)
    ).numpy()
    return Tangents(
        support=support,
        theta=theta,
        rates=np.ones_like(theta) if problem.rates is None else problem.rates.double().cpu().numpy(),
        proximal=problem.proximal,
        directions=np.vstack([drawn, drawn[:1]]),
        spans=np.array([1.0] * PROBES + [3.0]),
    )


def _tolerance(solver: Solver) -> float:
    """The tolerance of the certificate's own solve."""
    return WITHOUT_TOLERANCE if isinstance(solver, FixedStep) else min(max(solver.rtol / 10, FINEST), COARSEST)


def _derivatives(
    problem: GradientProblem, tangents: Tangents, query: Gradient, ends: Sequence[Array], tolerance: float
) -> tuple[Array, Array]:
    """The derivatives of J along the directions [M] and their uncertainties [M]. An uncertainty is the effect of the allowed
    errors of δ's elements, plus that of the query gradient's change when every element of u has the largest allowed error."""
    derivatives, uncertainties = np.zeros((2, len(tangents.directions)))
    signs = np.where(np.arange(len(tangents.theta)) % 2, 1.0, -1.0)
    strength = problem.proximal if problem.proximal_in_query else 0.0
    for weight, state in zip(problem.weights, ends, strict=True):
        allowed = tolerance * np.abs(state) + tangents.absolute_tolerances(state, tolerance)
        u, deltas = state[0], state[1:]
        slope, moved = query(np.vstack([u, u + signs * allowed[0]]))
        proximal_slope = strength * (u - tangents.theta)
        derivatives += weight * (deltas @ slope + (deltas - tangents.directions) @ proximal_slope)
        uncertainties += abs(weight) * state.size**0.5 * _random_sums(allowed[1:] * (slope + proximal_slope))
        uncertainties += abs(weight) * np.abs(deltas @ (moved - slope))
    if not (np.isfinite(derivatives).all() and np.isfinite(uncertainties).all()):
        raise Undecided("the query loss's gradient became infinite or NaN in float64")
    return derivatives, uncertainties


def _random_sums(terms: Array) -> Array:
    """The expected size [M] of sums of errors [M, P] with random signs. The solver bounds only a mean over all elements, so a few
    of them may carry all of the error: sums of few terms count as much larger than sums of many."""
    sums: Array = np.sum(terms**2, axis=1) / np.maximum(np.sum(np.abs(terms), axis=1), TINY)
    return sums


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
