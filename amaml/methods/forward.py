"""Estimates that need only the forward solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.trajectory import Solution
from amaml.kernel import solve as kernel
from amaml.methods.estimate import GradientEstimate, Stats
from amaml.methods.parameters import Layout
from amaml.methods.problem import GradientProblem


def estimate_without_adjoint(
    problem: GradientProblem,
    layout: Layout,
    direction: Callable[[GradientFlow, list[Tensor], list[Tensor]], Tensor],
) -> GradientEstimate:
    """For estimators that don't go back: `direction` makes the estimate [B, P] of the field, the states u(T_k) and the
    weighted query gradients there."""
    if not problem.solver.fixed:  # its guard is for the adjoint: the state is held at tolerance without it
        problem = replace(problem, solver=problem.solver.guarded(False))
    flow = problem.flow()
    solution = _carry(problem, flow)
    losses, jumps, direct = zip(*(problem.judge(k, end) for k, end in enumerate(solution.ends)), strict=True)
    estimates = direction(flow, solution.ends, list(jumps)) + sum(direct)
    raise_where(~estimates.isfinite().all(dim=1), Result.NON_FINITE, problem.horizons[-1])
    problem.derivatives.confirm()
    return GradientEstimate(
        grad=layout.unflatten_gradient(estimates.mean(dim=0)),
        per_task=layout.unflatten_gradient(estimates),
        loss=torch.stack(losses, dim=1) @ problem.theta.new_tensor(problem.weights),
        adapted=layout.unflatten(solution.ends[-1]),
        stats=Stats.of(solution, flow.evaluations, problem.target),
    )


def _carry(problem: GradientProblem, flow: GradientFlow) -> Solution:
    """Forward alone, by the compiled kernel where there is one for the problem; `flow` counts what it took."""
    carried = kernel.carry(problem)
    if carried is None:
        return problem.solver.solve(flow, problem.batch, problem.horizons)
    solution, counted = carried
    flow.evaluations.gradients.add_(counted.gradients)
    flow.evaluations.hvps.add_(counted.hvps)
    return solution
