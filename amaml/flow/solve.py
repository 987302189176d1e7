"""The forward solve: u is integrated from θ along the flow to one or several horizons, each task with its own steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from amaml.flow.control import SHARE, Attempt, Integration, over
from amaml.flow.field import GradientFlow
from amaml.flow.guard import PowerIteration
from amaml.flow.kinks import Kinks
from amaml.flow.result import Failure, Result, SolveError, failures_where, raise_where
from amaml.flow.trajectory import Round, Trajectory, largest_step

CHECK_EVERY = 16
"""The number of fixed steps between two checks: of λmax, and of states for infinity and NaN."""


def fixed_steps(horizons: Sequence[float], step: float) -> list[tuple[int, float]]:
    """(N, h) for each interval between horizons: N = round(length/step), at least 1, equal steps of h = length/N."""
    counts = [max(1, round((end - start) / step)) for start, end in pairwise([0.0, *horizons])]
    return [(n, (end - start) / n) for n, (start, end) in zip(counts, pairwise([0.0, *horizons]), strict=True)]


def solve_by_fixed_steps(field: GradientFlow, trajectory: Trajectory, step: float, *, guard: bool) -> None:
    """Solves by equal steps and records them in the trajectory. Raises SolveError where a state isn't finite or, with the guard,
    where a step is outside the stability region."""
    u = field.theta.expand(len(trajectory.steps), -1).clone()
    check = _Check(field, trajectory, guard=guard)
    number = 0
    horizons = trajectory.horizons
    for (count, h), (start, _) in zip(fixed_steps(horizons, step), pairwise([0.0, *horizons]), strict=True):
        round_ = Round(field, h)
        for index in range(count):
            t = start + index * h
            if number % CHECK_EVERY == 0:
                check(u, h, t)
            trajectory.append(round_, u, t)
            u = round_.advance(trajectory.tableau, u)
            number += 1
        trajectory.arrive(u)
    trajectory.steps += number
    check(u, h, horizons[-1])
    check.fail_if_any_did()


class _Check:
    """Records the first failure of every task: a state that isn't finite, or a step outside the stability region. The other tasks
    are solved to the end, so that the remedy in the message suffices for those that fail later, too."""

    def __init__(self, field: GradientFlow, trajectory: Trajectory, *, guard: bool) -> None:
        self._field, self._trajectory, self._guard = field, trajectory, guard
        self._power: PowerIteration | None = None
        self._failures: dict[int, Failure] = {}

    def __call__(self, u: Tensor, h: float, t: float) -> None:
        """Checks the states u [B, P], from which steps of length h start. Raises SolveError once all tasks have failed."""
        found = failures_where(~u.isfinite().all(dim=1), Result.NON_FINITE, t)
        if self._guard:
            lambda_max, limit = self._estimate(u), self._trajectory.tableau.stability_limit
            found += failures_where(~lambda_max.isfinite(), Result.NON_FINITE, t)
            product, bound = h * lambda_max, largest_step(self._trajectory.horizons, lambda_max, limit)
            found += failures_where(~(product <= limit), Result.STABILITY_LIMIT, t, product, bound)
        for failure in found:
            self._failures.setdefault(failure.task, failure)
        if len(self._failures) == len(u):
            self.fail_if_any_did()

    def fail_if_any_did(self) -> None:
        if self._failures:
            raise SolveError([self._failures[task] for task in sorted(self._failures)])

    def _estimate(self, u: Tensor) -> Tensor:
        """The estimate of λmax [B] after one more power iteration."""
        trajectory = self._trajectory
        if self._power is None:
            self._power = PowerIteration(self._field, u)
            trajectory.lambda_max = self._power.lambda_max
        else:
            self._power.follow(*self._power.iterate(self._field, u), None)
            trajectory.lambda_max = torch.maximum(trajectory.lambda_max, self._power.lambda_max)
        return self._power.lambda_max


def solve_adaptively(
    field: GradientFlow, trajectory: Trajectory, rtol: float, atol: float, *, guard: bool, max_steps: int
) -> None:
    """Solves by adaptive steps, each task's own, and records them in the trajectory. Raises SolveError where a task fails."""
    u = field.theta.expand(len(trajectory.steps), -1).clone()
    power = PowerIteration(field, u) if guard else None
    if power is not None:
        raise_where(~power.lambda_max.isfinite(), Result.NON_FINITE, 0.0)
        trajectory.lambda_max = power.lambda_max
    kinks = Kinks(field, u, rtol) if field.watched else None
    problem = InnerFlow(field, trajectory, power, kinks, rtol, atol * field.scales)
    t = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    span = trajectory.horizons[-1]
    integration = Integration(problem, trajectory.tableau, t, u, max_steps=max_steps, span=span)
    for horizon in trajectory.horizons:
        trajectory.arrive(integration.to(torch.full_like(t, horizon)))


def state_over_tolerance(error: Tensor, before: Tensor, after: Tensor, rtol: float, atol: Tensor) -> Tensor:
    """The largest entry of the error of u [A, P], each divided by its share of the tolerance, in float64 [A]. It is the largest
    and not a mean, in which a few parameters that move fast would hide among many that don't. No tolerance is below rounding."""
    size = torch.maximum(before.abs(), after.abs())
    tolerance = torch.maximum(SHARE * (rtol * size + atol), torch.finfo(size.dtype).eps * size)
    return over(error, tolerance).amax(dim=1).double()


class InnerFlow:
    """The forward problem: the field, the guard's cap on its steps, and the record of the steps taken."""

    END_SLACK = 1.1
    """The factor by which λmax may grow over a step that was as long as the cap allowed; more rejects the step."""

    def __init__(
        self,
        field: GradientFlow,
        trajectory: Trajectory,
        power: PowerIteration | None,
        kinks: Kinks | None,
        rtol: float,
        atol: Tensor,
    ) -> None:
        self.field, self.trajectory, self.power, self.kinks = field, trajectory, power, kinks
        self.rtol, self.atol = rtol, atol

    def take(self, rows: Tensor) -> InnerFlow:
        return InnerFlow(self.field.take(rows), self.trajectory, self.power, self.kinks, self.rtol, self.atol)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(y)

    def over_tolerance(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return state_over_tolerance(error, before, after, self.rtol, self.atol)

    def longest_step(self, t: Tensor) -> Tensor | None:
        if self.power is None:
            return None
        return self.trajectory.tableau.guard / self._mine(self.power.lambda_max).double()

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        if self.power is None or not bool(good.any()):
            return good
        vector, lambda_max = self.power.iterate(self.field, y)
        cap = self.END_SLACK * self.trajectory.tableau.guard
        stable = good & (h * lambda_max.double() <= cap)
        # A task whose step is unstable at its end keeps the old vector, but takes the new estimate, which shortens its next try.
        known = self._mine(self.power.lambda_max)
        self.power.follow(
            torch.where(stable[:, None], vector, self._mine(self.power.vector)),
            torch.where(good & lambda_max.isfinite(), lambda_max, known),
            self.field.rows,
        )
        seen = self._mine(self.trajectory.lambda_max)
        highest = torch.where(stable, torch.maximum(seen, lambda_max), seen)
        rows = self.field.rows
        self.trajectory.lambda_max = (
            highest if rows is None else self.trajectory.lambda_max.index_copy(0, rows, highest)
        )
        return stable

    def observe(self, attempt: Attempt) -> None:
        trajectory = self.trajectory
        accepted = attempt.h > 0
        _count(trajectory.steps, accepted, attempt.rows)
        _count(trajectory.rejected, attempt.tried & ~accepted, attempt.rows)
        if self.kinks is not None:
            self.kinks.observe(self.field, attempt)
        if bool(accepted.any()):
            trajectory.append(Round(self.field, attempt.column), attempt.y, attempt.t)

    def _mine(self, values: Tensor) -> Tensor:
        return values if self.field.rows is None else values[self.field.rows]


def _count(counter: Tensor, which: Tensor, rows: Tensor | None) -> None:
    if rows is None:
        counter += which
    else:
        counter.index_add_(0, rows, which.to(counter.dtype))
