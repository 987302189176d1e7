"""A meta-gradient's error, estimated by a solver that shares nothing with the one that computed the meta-gradient."""

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
"""Random directions. An error hides from all of them by a factor of 10 about once in 100,000 times."""
FINEST, COARSEST = 1e-10, 1e-7
"""Tolerances of the certificate's own solve: a tenth of the judged solver's, within these. Finer ones drown in the rounding of
the differences; coarser ones would step over kinks and narrow features of the losses."""
WITHOUT_TOLERANCE = 1e-9
"""The certificate's tolerance where the judged solver has none."""
MAP_ROUNDING = 1e-10
"""What rounding leaves of the differences along a discrete map, relative."""
LEAST_EVALUATIONS, EVALUATIONS, MOST_EVALUATIONS = 2_000, 2, 10_000
"""Evaluations of a flow and its tangents that a certificate may take for a task: beside the judged solve's, in units of them, and
in all."""
DECIDED = 0.01
"""Relative resolution from which on nothing is known of the error: tangents of stiff flows that left more open were off by
more than that."""


@dataclass(frozen=True)
class Verdict:
    """What is known of the error of one task's meta-gradient."""

    error: float
    duality: float
    reason: str | None


@dataclass(frozen=True)
class Certificate:
    """What is known of the error of every task's meta-gradient."""

    error: Tensor
    """An estimate of ‖g − g*‖/‖g*‖ a task [B], float64, where g* is what the solver aims at (see `Stats.target`). It is never
    less than what the certificate can resolve, and infinite where nothing is known of the error."""
    duality: Tensor
    """The same without what can't be resolved: the root mean square over the directions of |⟨g, v⟩ − dJ(θ; v)|, relative."""
    reasons: tuple[str | None, ...]
    """Why an error is infinite, a sentence a task; None where it is finite."""

    @staticmethod
    def of(verdicts: Sequence[Verdict]) -> Certificate:
        """Of the tasks in their order."""
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
    """Judges the `gradients` [B, P] of a problem, whose solves took so many `evaluations` of the flow [B], a task after the
    other, since each may take seconds.

    In six random directions v it compares ⟨g, v⟩ with the derivative of J along v, which the tangent equation gives. For v with
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
    """One of the tasks, in float64."""

    def one(leaf: Tensor) -> Tensor:
        return leaf[index].double() if leaf.is_floating_point() else leaf[index]

    return tree_map(one, tasks)


def _verdict(problem: GradientProblem, support: Gradient, query: Gradient, gradient: Array, budget: int) -> Verdict:
    """Of one task's gradient [P]: infinite, and why, where nothing is known of its error."""
    try:
        with np.errstate(all="ignore"):  # infinite and undefined numbers are looked for where they matter
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
    """Raises Undecided where there is nothing to compare the gradient with."""
    tangents = _tangents(problem, support)
    if problem.target == "discrete":
        assert isinstance(problem.solver, FixedStep | TorchDiffEq)
        tolerance, ends = MAP_ROUNDING, along_map(tangents, problem.horizons, problem.solver)
    else:
        tolerance = _tolerance(problem.solver)
        ends = along_flow(tangents, problem.horizons, tolerance, budget)
    derivatives, doubts = _derivatives(problem, tangents, query, ends, tolerance)
    size = _rms(derivatives[:PROBES])
    apart = _rms((derivatives - tangents.directions @ gradient)[:PROBES])
    if size == 0 and apart == 0:
        return 0.0, 0.0
    if size == 0:
        raise Undecided("the meta-loss's derivative is 0 in every direction tried, but the gradient isn't 0")
    doubt = _rms(doubts[:PROBES]) + abs(derivatives[PROBES] - derivatives[0])
    if not doubt < DECIDED * size:
        raise Undecided(
            f"the certificate can't resolve so small a gradient: what its own tolerance ({tolerance:.0e}) and its differences "
            f"leave open is {doubt / size:.1g} of it"
        )
    return float((apart + doubt) / size), float(apart / size)


def _tangents(problem: GradientProblem, support: Gradient) -> Tangents:
    """The six random directions, the same for every task, and the first of them again with differences of three times the
    step: the two derivatives lie eight times the truncation of the first apart."""
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
    """Of the certificate's own solve."""
    return WITHOUT_TOLERANCE if isinstance(solver, FixedStep) else min(max(solver.rtol / 10, FINEST), COARSEST)


def _derivatives(
    problem: GradientProblem, tangents: Tangents, query: Gradient, ends: Sequence[Array], tolerance: float
) -> tuple[Array, Array]:
    """The derivatives of J in the directions [M], and what the tolerance leaves open of each [M]: what the errors of δ's elements
    come to, and what the query gradient changes where every element of u is off by as much as it may be."""
    derivatives, doubts = np.zeros((2, len(tangents.directions)))
    signs = np.where(np.arange(len(tangents.theta)) % 2, 1.0, -1.0)
    strength = problem.proximal if problem.proximal_in_query else 0.0
    for weight, state in zip(problem.weights, ends, strict=True):
        allowed = tolerance * np.abs(state) + tangents.absolute_tolerances(state, tolerance)
        u, deltas = state[0], state[1:]
        slope, moved = query(np.vstack([u, u + signs * allowed[0]]))
        pull = strength * (u - tangents.theta)
        derivatives += weight * (deltas @ slope + (deltas - tangents.directions) @ pull)
        doubts += abs(weight) * state.size**0.5 * _random_sums(allowed[1:] * (slope + pull))
        doubts += abs(weight) * np.abs(deltas @ (moved - slope))
    if not (np.isfinite(derivatives).all() and np.isfinite(doubts).all()):
        raise Undecided("the query loss's gradient became infinite or NaN in float64")
    return derivatives, doubts


def _random_sums(terms: Array) -> Array:
    """The size of sums [M] over errors [M, P] of random signs. Few elements may carry all of the error, since the solver bounds a
    mean over all of them; so sums of few terms count as much larger than those of many."""
    sums: Array = np.sum(terms**2, axis=1) / np.maximum(np.sum(np.abs(terms), axis=1), TINY)
    return sums


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
