"""Meta-gradient estimates that need only the forward solve."""

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
    """The estimate of a method without a backward solve: `direction` computes it [B, P] from the field, the states u(T_k) and the
    weighted query gradients at them. Raises SolveError where a loss, a gradient or an estimate is infinite or NaN."""
    if not problem.solver.fixed:  # the guard serves the adjoint; error control alone keeps the state within tolerance
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
    """The forward solve, by the compiled kernel where it supports the problem. Its evaluations are added to those of `flow`."""
    carried = kernel.carry(problem)
    if carried is None:
        return problem.solver.solve(flow, problem.batch, problem.horizons)
    solution, counted = carried
    flow.evaluations.gradients.add_(counted.gradients)
    flow.evaluations.hvps.add_(counted.hvps)
    return solution
