"""Adaptive integration of a batch of independent initial value problems: each task has its own step size, error test and end."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from amaml.flow.result import Result, raise_where
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.tableau import Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
SHARE = 0.1
"""The share of the tolerance that the error of one step may use: the errors of all steps add up, and a gradient amplifies them.
A small share costs little where stability and not accuracy limits the steps, which is the usual case."""
SMALLEST_STEP = 1e-12
"""The shortest step that is tried, as a fraction of the whole interval of integration."""


class InitialValueProblem(Protocol):
    """What is integrated. Arguments have one row for each active task: the tasks that `take` selected, or all of them."""

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt at t [A], y [A, D]."""

    def over_tolerance(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The size [A], in float64, of the error [A, D] of a step between these states; 1 is the largest error that is
        accepted."""

    def longest_step(self, t: Tensor) -> Tensor | None:
        """The longest step allowed from t [A]; None: any length."""

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        """Whether a step of length h [A] that ends in the state y [A, D] is accepted [A]. Only tasks whose error test passed
        (`good`) are tested."""

    def observe(self, step: Attempt) -> None:
        """Is called with every attempted step, accepted or not."""

    def take(self, rows: Tensor) -> Self:
        """The same problem for these tasks of the whole batch."""


class Attempt:
    """One attempted step of the tasks `rows` (None: all); `h` [A] is 0 where it was rejected or the task is at its end
    already."""

    def __init__(
        self, rows: Tensor | None, t: Tensor, h: Tensor, y: Tensor, states: list[Tensor], slopes: Tensor
    ) -> None:
        self.rows, self.h = rows, h
        self.t = t
        """The whole batch's t [B] before the step."""
        self.y = y
        """The whole batch's state [B, D] before the step."""
        self.states, self.slopes = states, slopes
        self.end_slope = slopes[0]
        """The slope at the end of the step [A, D]."""
        self.y_new = states[0]
        """The state at the end of the step [A, D]."""
        self.tried = h > 0

    @property
    def column(self) -> Tensor:
        """h as [A, 1] in the state's dtype."""
        return self.h.to(self.y.dtype)[:, None]


class Integration:
    """Integrates y [B, D] from t [B], each task with its own steps. `problem` may be replaced between two calls of `to`; its
    slope must be continuous there. No step is shorter than SMALLEST_STEP times `span`, the length of the whole interval."""

    def __init__(
        self, problem: InitialValueProblem, tableau: Tableau, t: Tensor, y: Tensor, *, max_steps: int, span: float
    ) -> None:
        self.problem, self.tableau, self.t, self.y = problem, tableau, t, y
        self._max_steps, self._attempts, self._shortest = max_steps, 0, SMALLEST_STEP * span
        self._begin()

    def jump(self, change: Tensor) -> None:
        """Adds `change` [B, D] to y, and computes slope and step size anew."""
        self.y = self.y + change
        self._begin()

    def _begin(self) -> None:
        self._rows: Tensor | None = None
        self._slope = self.problem.slope(self.t, self.y)
        self._h = self._first_step()

    def to(self, end: Tensor) -> Tensor:
        """y at `end` [B] ≥ t, each task at its own.

        Tasks that have reached their end leave the computation. Raises SolveError for a task whose step underflows, whose state
        isn't finite however small the step, or that needs more than `max_steps` attempts in all.
        """
        rows: Tensor | None = None
        problem = self.problem
        if self._rows is not None:
            self._renew_slope(problem, rows)
        under_way = torch.nonzero(self.t < end).flatten()
        while len(under_way):
            # Removing tasks copies the data of the others, so it waits until at least a quarter of them can be removed.
            if 4 * len(under_way) <= 3 * (len(end) if rows is None else len(rows)):
                rows, problem = under_way, self.problem.take(under_way)
                self._renew_slope(problem, rows)
            if self._attempts == self._max_steps:
                raise_where(self.t < end, Result.BUDGET_SPENT, self.t, bound=float(self._max_steps))
            self._attempts += 1
            self._step(problem, rows, end)
            under_way = torch.nonzero(self.t < end).flatten()
        return self.y

    def _renew_slope(self, problem: InitialValueProblem, rows: Tensor | None) -> None:
        """Evaluates the slope again in the new batch: the last bits of a batched product depend on the batch's size, and the
        adjoint, which recomputes a step from its start, only knows the batch that took the step."""
        self._slope = _put(self._slope, rows, problem.slope(_pick(self.t, rows), _pick(self.y, rows)))
        self._rows = rows

    def _step(self, problem: InitialValueProblem, rows: Tensor | None, end: Tensor) -> None:
        t, y, wish, remaining = (_pick(v, rows) for v in (self.t, self.y, self._h, end - self.t))
        trial = _trial(wish, problem.longest_step(t), remaining)
        attempt, ratio = self._attempt(problem, rows, t, trial, y)
        good = (ratio <= 1) & (trial > 0)
        good &= problem.stable(attempt.y_new, trial, good)
        self._fail_where_too_small(~good & (trial > 0), trial, ratio, t, rows)
        attempt.h = trial * good
        problem.observe(attempt)
        growth = (SAFETY * ratio ** (-1 / self.tableau.order)).nan_to_num(SHRINK, GROW, SHRINK).clamp(SHRINK, GROW)
        growth = torch.where(good, growth, growth.clamp_max(SAFETY))
        # A step that was shortened to meet the end says little about the length of the next one.
        following = torch.where(good & (trial < wish), torch.maximum(wish, trial * growth), trial * growth)
        arrived = trial >= remaining
        self.t = _put(self.t, rows, torch.where(good, torch.where(arrived, _pick(end, rows), t + trial), t))
        self.y = _put(self.y, rows, torch.where(good[:, None], attempt.y_new, y))
        self._slope = _put(self._slope, rows, torch.where(good[:, None], attempt.end_slope, _pick(self._slope, rows)))
        self._h = _put(self._h, rows, torch.where(trial > 0, following, wish))

    def _attempt(
        self, problem: InitialValueProblem, rows: Tensor | None, t: Tensor, h: Tensor, y: Tensor
    ) -> tuple[Attempt, Tensor]:
        """The step and its error divided by the tolerance [A] (NaN where it isn't finite)."""
        tableau, column = self.tableau, h.to(y.dtype)[:, None]
        times = [t + fraction * h for fraction in tableau.c]
        first = _pick(self._slope, rows)
        states, slopes = stages(lambda i, u: problem.slope(times[i], u), tableau, y, column, first)
        w = weights(tableau, y)
        attempt = Attempt(rows, self.t, h, self.y, states, slopes)
        attempt.y_new = y + column * combine(w.b, slopes)
        attempt.end_slope = problem.slope(t + h, attempt.y_new)
        error = combine(w.error[:-1], slopes).add_(attempt.end_slope * w.error[-1]).mul_(column)
        return attempt, problem.over_tolerance(error, y, attempt.y_new)

    def _first_step(self) -> Tensor:
        """The first step size of each task, by Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section
        II.4."""
        t, y, slope = self.t, self.y, self._slope

        def size(v: Tensor) -> Tensor:
            return self.problem.over_tolerance(v, y, y)

        d0, d1 = size(y), size(slope)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        ahead = y + h0.to(y.dtype)[:, None] * slope
        d2 = size(self.problem.slope(t + h0, ahead) - slope) / h0
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / largest) ** (1 / self.tableau.order))
        return torch.minimum(100 * h0, h1).nan_to_num(1e-6).clamp_min(self._shortest)

    def _fail_where_too_small(self, rejected: Tensor, h: Tensor, ratio: Tensor, t: Tensor, rows: Tensor | None) -> None:
        too_small = rejected & (h < self._shortest)
        raise_where(too_small & ~ratio.isfinite(), Result.NON_FINITE, t, rows=rows)
        raise_where(too_small, Result.STEP_UNDERFLOW, t, value=h, rows=rows)


def over(error: Tensor, tolerance: Tensor) -> Tensor:
    """|error| / tolerance; 0 where the error is 0, since the tolerance of a quantity that doesn't move is 0 too."""
    return torch.where(error == 0, 0.0, error.abs() / tolerance)


def _trial(h: Tensor, longest: Tensor | None, remaining: Tensor) -> Tensor:
    """The step to try: no longer than allowed, and two equal steps to the end rather than a long and a tiny one."""
    if longest is not None:
        h = torch.minimum(h, longest)
    trial = torch.where(remaining <= h, remaining, torch.where(remaining < 2 * h, remaining / 2, h))
    return torch.where(remaining > 0, trial, 0.0)


def _pick(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _put(values: Tensor, rows: Tensor | None, new: Tensor) -> Tensor:
    return new if rows is None else values.index_copy(0, rows, new)
