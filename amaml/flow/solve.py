"""The initial value problem: θ carried along the flow to one or several horizons, every task at its own steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from amaml.flow.control import Attempt, integrate
from amaml.flow.dense import DenseOutput
from amaml.flow.field import GradientFlow
from amaml.flow.guard import Lookout, PowerIteration
from amaml.flow.result import Failure, Result, SolveError, failures_where, raise_where
from amaml.flow.runge_kutta import StepSize, advance
from amaml.flow.snapshots import Snapshots
from amaml.flow.solvers import Adaptive, FixedStep
from amaml.flow.tableau import Tableau

CHECK_EVERY = 16
"""Fixed steps between two looks at λmax and at finiteness."""


@dataclass(frozen=True)
class Round:
    """One step of the tasks of `field`: h is a number, or [A, 1] with 0 for tasks that rejected it or have arrived."""

    field: GradientFlow
    h: StepSize

    def step_of(self, task: int) -> float:
        if isinstance(self.h, float):
            return self.h
        rows = self.field.rows
        place = torch.tensor([task], device="cpu") if rows is None else torch.nonzero(rows == task).flatten()
        return float(self.h[place].sum())  # 0 where the task had arrived

    def advance(self, tableau: Tableau, u: Tensor) -> Tensor:
        """The whole batch's u [B, P] after this round."""
        rows = self.field.rows
        if rows is None:
            return advance(self.field, tableau, u, self.h)
        return u.index_copy(0, rows, advance(self.field, tableau, u[rows], self.h))


class Rounds:
    """The rounds of a solve in order, equal ones in a row stored once."""

    def __init__(self) -> None:
        self._runs: list[Round] = []
        self._starts: list[int] = []
        self._length = 0

    def append(self, round_: Round, times: int = 1) -> None:
        self._runs.append(round_)
        self._starts.append(self._length)
        self._length += times

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Round:
        return self._runs[bisect_right(self._starts, index) - 1]


@dataclass
class Trajectory:
    """The forward solve of a whole batch: enough to run along it again, in either direction."""

    tableau: Tableau
    horizons: list[float]
    ends: list[Tensor]
    """u(T_k) [B, P] for every horizon."""
    rounds: Rounds
    boundaries: list[int]
    """Number of rounds up to each horizon, 0 first."""
    snapshots: Snapshots
    steps: Tensor
    """Accepted steps [B]."""
    rejected: Tensor
    lambda_max: Tensor
    """Largest estimate along the way [B]; NaN without the guard."""
    dense: DenseOutput | None = None

    def lookout(self) -> Lookout | None:
        """For the way back; None without the guard."""
        if bool(self.lambda_max.isnan().any()):
            return None
        return Lookout(self.ends[-1], self.tableau, fixed=isinstance(self.rounds[0].h, float))

    def fail_where_seen(self, lookout: Lookout) -> None:
        """Raises SolveError for the tasks whose way back saw what the guard's looks had missed."""
        failures = []
        for task in torch.nonzero(~lookout.product.isnan()).flatten().tolist():
            product, number = float(lookout.product[task]), int(lookout.number[task])
            h, bound = self.rounds[number].h, float("nan")
            if isinstance(h, float):
                bound = float(largest_step(self.horizons, lookout.product[task] / h, self.tableau.stability_limit))
            failures.append(Failure(Result.STABILITY_LIMIT, task, self._time(number, task), product, bound))
        if failures:
            raise SolveError(failures)

    def _time(self, number: int, task: int) -> float:
        """Where the round begins for the task."""
        return sum(self.rounds[earlier].step_of(task) for earlier in range(number))


def solve(
    field: GradientFlow,
    batch: int,
    horizons: Sequence[float],
    solver: FixedStep | Adaptive,
    snapshots: Snapshots | None = None,
    *,
    dense: bool = False,
) -> Trajectory:
    """Carries θ for `batch` tasks to every horizon (increasing). Raises SolveError where a task fails."""
    u = field.theta.expand(batch, -1).clone()
    trajectory = Trajectory(
        tableau=solver.tableau,
        horizons=list(horizons),
        ends=[],
        rounds=Rounds(),
        boundaries=[0],
        snapshots=snapshots or Snapshots(),
        steps=torch.zeros(batch, dtype=torch.int64, device=u.device),
        rejected=torch.zeros(batch, dtype=torch.int64, device=u.device),
        lambda_max=u.new_full((batch,), float("nan")),
        dense=DenseOutput() if dense else None,
    )
    if isinstance(solver, FixedStep):
        _solve_fixed(field, u, trajectory, solver)
    else:
        _solve_adaptive(field, u, trajectory, solver)
    return trajectory


def fixed_steps(horizons: Sequence[float], step: float) -> list[tuple[int, float]]:
    """For each stretch between horizons (N, h): N = round(length/step), at least 1, equal steps of h = length/N."""
    counts = [max(1, round((end - start) / step)) for start, end in pairwise([0.0, *horizons])]
    return [(n, (end - start) / n) for n, (start, end) in zip(counts, pairwise([0.0, *horizons]), strict=True)]


def largest_step(horizons: Sequence[float], lambda_max: Tensor, limit: float) -> Tensor:
    """The largest step option for which `fixed_steps` makes steps with h·λmax of at most nine tenths of the limit."""
    stretches = torch.tensor(horizons, dtype=torch.float64, device=lambda_max.device)
    stretches = torch.diff(stretches, prepend=torch.zeros_like(stretches[:1]))
    return (stretches / torch.ceil(stretches * lambda_max.double()[..., None] / (0.9 * limit))).amin(dim=-1)


def _solve_fixed(field: GradientFlow, u: Tensor, trajectory: Trajectory, solver: FixedStep) -> None:
    power: PowerIteration | None = None
    failures: dict[int, Failure] = {}
    number = 0
    for (count, h), (start, _) in zip(
        fixed_steps(trajectory.horizons, solver.step), pairwise([0.0, *trajectory.horizons]), strict=True
    ):
        round_ = Round(field, h)
        trajectory.rounds.append(round_, count)
        for index in range(count):
            t = start + index * h
            if number % CHECK_EVERY == 0:
                power = _check(field, u, trajectory, solver, power, h, t, failures)
            trajectory.snapshots.offer(number, u)
            if trajectory.dense is None:
                u = round_.advance(solver.tableau, u)
            else:
                u = trajectory.dense.step(round_.field, solver.tableau, u, t, h)
            number += 1
        trajectory.ends.append(u)
        trajectory.boundaries.append(number)
    trajectory.steps += number
    _check(field, u, trajectory, solver, power, h, trajectory.horizons[-1], failures)
    if failures:
        raise _all_of(failures)


def _check(
    field: GradientFlow,
    u: Tensor,
    trajectory: Trajectory,
    solver: FixedStep,
    power: PowerIteration | None,
    h: float,
    t: float,
    failures: dict[int, Failure],
) -> PowerIteration | None:
    """Notes the first failure of every task that has left the finite numbers or the stability region. The others are solved on,
    since the remedy is to be theirs too if they fail later. Raises SolveError once all have failed."""
    found = failures_where(~u.isfinite().all(dim=1), Result.NON_FINITE, t)
    if solver.guard:
        power = _look(field, u, trajectory, power)
        found += failures_where(~power.lambda_max.isfinite(), Result.NON_FINITE, t)
        limit = solver.tableau.stability_limit
        product = h * power.lambda_max
        bound = largest_step(trajectory.horizons, power.lambda_max, limit)
        found += failures_where(~(product <= limit), Result.STABILITY_LIMIT, t, product, bound)
    for failure in found:
        failures.setdefault(failure.task, failure)
    if len(failures) == len(u):
        raise _all_of(failures)
    return power


def _all_of(failures: dict[int, Failure]) -> SolveError:
    return SolveError([failures[task] for task in sorted(failures)])


def _look(field: GradientFlow, u: Tensor, trajectory: Trajectory, power: PowerIteration | None) -> PowerIteration:
    """The power iteration, started or a step further, with what it found in the trajectory."""
    if power is None:
        power = PowerIteration(field, u)
        trajectory.lambda_max = power.lambda_max
    else:
        power.follow(*power.look(field, u), None)
        trajectory.lambda_max = torch.maximum(trajectory.lambda_max, power.lambda_max)
    return power


def _solve_adaptive(field: GradientFlow, u: Tensor, trajectory: Trajectory, solver: Adaptive) -> None:
    power = PowerIteration(field, u) if solver.guard else None
    if power is not None:
        raise_where(~power.lambda_max.isfinite(), Result.NON_FINITE, 0.0)
        trajectory.lambda_max = power.lambda_max
    h: Tensor | None = None
    for start, end in pairwise([0.0, *trajectory.horizons]):
        u, h = integrate(InnerFlow(field, trajectory, power), u, start, end, solver, h)
        trajectory.ends.append(u)
        trajectory.boundaries.append(len(trajectory.rounds))


class InnerFlow:
    """The forward problem: the field, the guard's cap on its steps, and the record of the steps taken."""

    END_SLACK = 1.1
    """λmax may have grown by this much over a step that was as long as the cap allowed."""

    def __init__(self, field: GradientFlow, trajectory: Trajectory, power: PowerIteration | None) -> None:
        self.field, self.trajectory, self.power = field, trajectory, power

    def take(self, rows: Tensor) -> InnerFlow:
        return InnerFlow(self.field.take(rows), self.trajectory, self.power)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(y)

    def longest_step(self, t: Tensor) -> Tensor | None:
        if self.power is None:
            return None
        return self.trajectory.tableau.guard / self._mine(self.power.lambda_max).double()

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        if self.power is None or not bool(good.any()):
            return good
        vector, lambda_max = self.power.look(self.field, y)
        cap = self.END_SLACK * self.trajectory.tableau.guard
        stable = good & (h * lambda_max.double() <= cap)
        # A task that the end of its step refuses keeps its vector and learns how stiff it gets.
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
        if not bool(accepted.any()):
            return
        trajectory.snapshots.offer(len(trajectory.rounds), attempt.y)
        trajectory.rounds.append(Round(self.field, attempt.column))
        if trajectory.dense is not None:
            trajectory.dense.record(attempt, trajectory.tableau, self.power)

    def _mine(self, values: Tensor) -> Tensor:
        return values if self.field.rows is None else values[self.field.rows]


def _count(counter: Tensor, which: Tensor, rows: Tensor | None) -> None:
    if rows is None:
        counter += which
    else:
        counter.index_add_(0, rows, which.to(counter.dtype))
