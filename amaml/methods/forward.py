"""The forward solve of a problem, by whichever solver it names, and the way back along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amaml.adjoint.discrete import Discrete
from amaml.adjoint.graph import GraphSolve
from amaml.adjoint.interpolated import Interpolated, tolerances
from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.result import Result, raise_where
from amaml.flow.snapshots import Snapshots
from amaml.flow.solve import fixed_steps, solve
from amaml.flow.solvers import Adaptive, FixedStep, TorchDiffEq
from amaml.kernel import solve as kernel
from amaml.methods.estimate import Estimate, Stats
from amaml.methods.parameters import Layout
from amaml.methods.problem import Problem


@dataclass(frozen=True)
class Forward:
    """A forward solve, however it was done, and the way back along it."""

    ends: list[Tensor]
    steps: Tensor
    rejected: Tensor
    lambda_max: Tensor
    pull: Callable[[list[Tensor], Sensitivity], Tensor]
    """(jumps of λ at the horizons, what to gather) → λ(0)."""


def solve_forward(problem: Problem, flow: GradientFlow, *, back: bool = True) -> Forward:
    """Carries θ to the horizons; raises SolveError where a task fails. Without `back`, nothing is kept for a way back."""
    adjoint, solver, batch = problem.adjoint, problem.solver, problem.batch
    if isinstance(solver, TorchDiffEq):
        if adjoint != Discrete():
            raise ValueError(
                f"torchdiffeq's {solver.method} keeps its own graph: use adjoint=Discrete() without checkpoints, got {adjoint}"
            )
        graph = GraphSolve(flow, batch, problem.horizons, solver, graph=back)
        unknown = torch.full((batch,), -1, device=problem.theta.device)
        return Forward(graph.ends, unknown, unknown, graph.lambda_max, graph.adjoint)
    rounds = sum(n for n, _ in fixed_steps(problem.horizons, solver.step)) if isinstance(solver, FixedStep) else None
    trajectory = solve(
        flow, batch, problem.horizons, solver,
        adjoint.snapshots(rounds) if back else Snapshots(limit=1), dense=back and isinstance(adjoint, Interpolated),
    )  # fmt: skip

    def pull(jumps: list[Tensor], sensitivity: Sensitivity) -> Tensor:
        if isinstance(adjoint, Discrete):
            return adjoint.solve(trajectory, jumps, sensitivity)
        return adjoint.solve(flow, trajectory, jumps, sensitivity, tolerances(solver))

    return Forward(trajectory.ends, trajectory.steps, trajectory.rejected, trajectory.lambda_max, pull)


def estimate_without_adjoint(
    problem: Problem,
    layout: Layout,
    direction: Callable[[GradientFlow, list[Tensor], list[Tensor]], Tensor],
) -> Estimate:
    """For estimators that don't go back: `direction` makes the estimate [B, P] of the field, the states u(T_k) and the
    weighted query gradients there."""
    if isinstance(problem.solver, Adaptive):  # its guard is for the adjoint: the state is held at tolerance without it
        problem = replace(problem, solver=replace(problem.solver, guard=False))
    flow = problem.flow()
    way = _carry(problem, flow)
    ends = list(way.ends.unbind(dim=1))
    losses, jumps, direct = zip(*(problem.judge(k, end) for k, end in enumerate(ends)), strict=True)
    estimates = direction(flow, ends, list(jumps)) + sum(direct)
    raise_where(~estimates.isfinite().all(dim=1), Result.NON_FINITE, problem.horizons[-1])
    problem.derivatives.confirm()
    return Estimate(
        grad=layout.unflatten_gradient(estimates.mean(dim=0)),
        per_task=layout.unflatten_gradient(estimates),
        loss=torch.stack(losses, dim=1) @ problem.theta.new_tensor(problem.weights),
        adapted=layout.unflatten(ends[-1]),
        stats=Stats(
            way.steps, way.rejected, flow.evaluations.gradients, flow.evaluations.hvps, way.lambda_max, problem.target
        ),
    )


def _carry(problem: Problem, flow: GradientFlow) -> kernel.Carried:
    """Forward alone, by the compiled kernel where there is one for the problem; `flow` counts what it took."""
    counted = flow.evaluations
    carried = kernel.carry(problem)
    if carried is None:
        way = solve_forward(problem, flow, back=False)
        return kernel.Carried(
            torch.stack(way.ends, dim=1), way.steps, way.rejected, counted.gradients, counted.hvps, way.lambda_max
        )
    counted.gradients.add_(carried.gradient_count)
    counted.hvps.add_(carried.hvp_count)
    return carried
