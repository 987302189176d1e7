"""A meta-gradient's own measure of its error: no reference from elsewhere, no trust in the adjoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from amaml.adjoint.discrete import Discrete
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.snapshots import Snapshots
from amaml.flow.solvers import Adaptive, Dopri5, FixedStep
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.flow.trajectory import Trajectory
from amaml.methods.problem import Problem

FINEST = 1e-12
"""Tolerance below which float64 has nothing more to give."""
DEFAULT_REFERENCE = 1e-9
"""Tolerance of the reference where the gradient's own solver has none."""
LEAST_STEPS, MORE_STEPS = 2_000, 5
"""What the reference of an adaptive solve may take beside, and times, its own steps: Dormand–Prince needs 2.5 times as many for
a hundredth of the tolerance."""


@dataclass(frozen=True)
class Certificate:
    """Both a value a task [B], relative; small is good."""

    duality: Tensor
    """|⟨dJ/dθ, v⟩ − dJ(θ; v)| / (‖dJ/dθ‖·‖v‖) for a fixed direction v, the second by carrying v forward along the solver's
    own steps. Finds mistakes and rounding of a discrete adjoint; for the other adjoints it holds their discretisation.
    NaN for torchdiffeq's solvers, which show no steps to carry v along."""
    error: Tensor
    """‖g − g′‖ / ‖g′‖ with g′ solved anew: for a flow target in float64 at a hundredth of the tolerance with the guard, for
    a discrete target the same steps in float64. Infinite where g′ couldn't be had, as for losses with kinks: nothing is known
    of the error then."""


def certify(problem: Problem, gradients: Tensor, reference: Tensor | None) -> Certificate:
    """`gradients` [B, P] answer `problem`; `reference` [B, P] answers `finer` of it, None where that failed."""
    direction = _direction(problem.theta)
    derivative = _directional_derivative(problem, direction)
    apart = (gradients @ direction - derivative).abs() / (gradients.norm(dim=1) * direction.norm())
    if reference is None:
        return Certificate(apart.double(), torch.full_like(apart, float("inf"), dtype=torch.float64))
    error = (gradients.double() - reference).norm(dim=1) / reference.norm(dim=1)
    return Certificate(apart.double(), error)


def finer(problem: Problem, steps: Tensor) -> Problem:
    """The question, in float64, whose answer judges that of `problem`, which took so many steps [B]: many times as many are a
    sign that a hundredth of the tolerance can't be had."""
    if problem.target == "discrete":
        return problem
    solver = problem.solver
    own = DEFAULT_REFERENCE if isinstance(solver, FixedStep) else min(solver.rtol, getattr(solver, "atol", 1.0)) / 100
    tolerance = max(FINEST, own)
    reference = Dopri5(tolerance, tolerance, guard=True)
    if isinstance(solver, Adaptive):
        reference = replace(reference, max_steps=LEAST_STEPS + MORE_STEPS * int(steps.max()))
    return replace(problem, solver=reference, adjoint=Discrete())


def _direction(theta: Tensor) -> Tensor:
    """A fixed v [P]: signs drawn once and for all, so that the certificate of a run is a function of the run."""
    generator = torch.Generator().manual_seed(1)
    return (2.0 * torch.randint(2, theta.shape, generator=generator, device="cpu") - 1).to(theta)


def _directional_derivative(problem: Problem, direction: Tensor) -> Tensor:
    """dJ(θ; v) [B]: the tangent w(t) of u(t), w(0) = v, along the solver's own steps, met by ∇L_qry at the horizons."""
    solver = problem.solver
    if isinstance(solver, TorchDiffEq):
        return problem.theta.new_full((problem.batch,), float("nan"))
    trajectory = solver.solve(problem.flow(), problem.batch, problem.horizons, Snapshots(limit=1))
    assert isinstance(trajectory, Trajectory)
    total = problem.theta.new_zeros(problem.batch)
    u = problem.theta.expand(problem.batch, -1).clone()
    tangent = direction.expand_as(u).clone()
    for k, (start, end) in enumerate(pairwise(trajectory.arrivals)):
        for number in range(start, end):
            u, tangent = _carry(trajectory, number, u, tangent, direction)
        _, jump, direct = problem.judge(k, u)
        total += (jump * tangent).sum(dim=1) + direct @ direction
    return total


def _carry(trajectory: Trajectory, number: int, u: Tensor, tangent: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """State and tangent of the whole batch [B, P] after a round."""
    round_, tableau = trajectory.rounds[number], trajectory.tableau
    field, h = round_.field, round_.h
    u_now, tangent_now = (u, tangent) if field.rows is None else (u[field.rows], tangent[field.rows])
    states, slopes = stages(lambda _, v: field(v), tableau, u_now, h)
    # θ moves by v too, and pulls through the proximal term.
    pulled = field.proximal * (direction if field.rates is None else field.rates * direction)
    _, tangent_slopes = stages(lambda i, w: field.jacobian(states[i], w) + pulled, tableau, tangent_now, h)
    b = weights(tableau, u).b
    u_now, tangent_now = u_now + h * combine(b, slopes), tangent_now + h * combine(b, tangent_slopes)
    if field.rows is None:
        return u_now, tangent_now
    return u.index_copy(0, field.rows, u_now), tangent.index_copy(0, field.rows, tangent_now)
