"""Adaptive integration of a batch of independent problems: a step size, an error test and an arrival for each task."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from amaml.flow.result import Result, raise_where
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.tableau import Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
SHARE = 0.1
"""Of the tolerance, for one step: steps' errors add up, and a gradient shows them enlarged. A smaller share is cheap where
stability sets the steps, as it mostly does."""
SMALLEST_STEP = 1e-12
"""As a fraction of the whole way."""


class Problem(Protocol):
    """What is integrated. Arguments have a row for every task still under way: those last named by `take`, or all."""

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt at t [A], y [A, D]."""

    def over_tolerance(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The size [A], in float64, of an error [A, D] of a step between these states, in units of what one step may have."""

    def longest_step(self, t: Tensor) -> Tensor | None:
        """Cap on the step from t [A], where there is one."""

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        """Whether a step of length h [A] to the state y [A, D] is stable. Only tasks in `good`, whose error test passed, are
        judged."""

    def observe(self, step: Attempt) -> None:
        """Sees every attempt, accepted or not."""

    def take(self, rows: Tensor) -> Self:
        """The same problem for some tasks of the whole batch."""


class Attempt:
    """One attempted step of the tasks `rows` (None: all); `h` [A] is 0 where it was rejected or the task has arrived."""

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
        """Slope where the step leads [A, D]."""
        self.y_new = states[0]
        """Where the step leads [A, D]."""
        self.tried = h > 0

    @property
    def column(self) -> Tensor:
        """h as [A, 1] in the state's dtype."""
        return self.h.to(self.y.dtype)[:, None]


class Integration:
    """Carries y [B, D] on from t [B], each task with steps of its own; `problem` may be replaced at any t, where the new one
    must continue the old one. A step is never shorter than a small fraction of `way`, the length of all there is to do."""

    def __init__(self, problem: Problem, tableau: Tableau, t: Tensor, y: Tensor, *, max_steps: int, way: float) -> None:
        self.problem, self.tableau, self.t, self.y = problem, tableau, t, y
        self._max_steps, self._attempts, self._shortest = max_steps, 0, SMALLEST_STEP * way
        self._begin()

    def jump(self, change: Tensor) -> None:
        """Adds `change` [B, D] to y; what was known of slope and step size is known no more."""
        self.y = self.y + change
        self._begin()

    def _begin(self) -> None:
        self._rows: Tensor | None = None
        self._slope = self.problem.slope(self.t, self.y)
        self._h = self._first_step()

    def to(self, end: Tensor) -> Tensor:
        """y when every task has arrived at its own `end` [B] ≥ t.

        Tasks that have arrived leave the computation. Raises SolveError for a task whose step underflows, whose state isn't
        finite however small the step, or that needs more than `max_steps` attempts from the beginning.
        """
        rows: Tensor | None = None
        problem = self.problem
        if self._rows is not None:
            self._renew_slope(problem, rows)
        under_way = torch.nonzero(self.t < end).flatten()
        while len(under_way):
            # Leaving costs a copy of the tasks' data, so they leave in groups of a quarter.
            if 4 * len(under_way) <= 3 * (len(end) if rows is None else len(rows)):
                rows, problem = under_way, self.problem.take(under_way)
                self._renew_slope(problem, rows)
            if self._attempts == self._max_steps:
                raise_where(self.t < end, Result.BUDGET_SPENT, self.t, bound=float(self._max_steps))
            self._attempts += 1
            self._step(problem, rows, end)
            under_way = torch.nonzero(self.t < end).flatten()
        return self.y

    def _renew_slope(self, problem: Problem, rows: Tensor | None) -> None:
        """For other tasks than before: the last bits of a batched product depend on the batch's size, and who makes a step again
        from its start knows nothing of the batch before."""
        self._slope = _put(self._slope, rows, problem.slope(_pick(self.t, rows), _pick(self.y, rows)))
        self._rows = rows

    def _step(self, problem: Problem, rows: Tensor | None, end: Tensor) -> None:
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
        # A step that the end cut short says little about the next one.
        following = torch.where(good & (trial < wish), torch.maximum(wish, trial * growth), trial * growth)
        arrived = trial >= remaining
        self.t = _put(self.t, rows, torch.where(good, torch.where(arrived, _pick(end, rows), t + trial), t))
        self.y = _put(self.y, rows, torch.where(good[:, None], attempt.y_new, y))
        self._slope = _put(self._slope, rows, torch.where(good[:, None], attempt.end_slope, _pick(self._slope, rows)))
        self._h = _put(self._h, rows, torch.where(trial > 0, following, wish))

    def _attempt(
        self, problem: Problem, rows: Tensor | None, t: Tensor, h: Tensor, y: Tensor
    ) -> tuple[Attempt, Tensor]:
        """The step and its error over tolerance [A] (NaN where it isn't finite)."""
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
        """Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4, for each task."""
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
    """|error| / tolerance, 0 where there is no error at all: where nothing moves, nothing is allowed either."""
    return torch.where(error == 0, 0.0, error.abs() / tolerance)


def _trial(h: Tensor, longest: Tensor | None, remaining: Tensor) -> Tensor:
    """The step to try: no longer than allowed, two equal steps rather than a long and a tiny one at the end."""
    if longest is not None:
        h = torch.minimum(h, longest)
    trial = torch.where(remaining <= h, remaining, torch.where(remaining < 2 * h, remaining / 2, h))
    return torch.where(remaining > 0, trial, 0.0)


def _pick(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _put(values: Tensor, rows: Tensor | None, new: Tensor) -> Tensor:
    return new if rows is None else values.index_copy(0, rows, new)
