"""Adaptive integration of a batch of independent problems: a step size, an error test and an arrival for each task."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from amaml.flow.result import Result, raise_where
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.solvers import Adaptive

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
SHARE = 0.1
"""Of the tolerance, for one step: steps' errors add up, and a gradient shows them enlarged. A smaller share is cheap where
stability sets the steps, as it mostly does."""
SMALLEST_STEP = 1e-12
"""As a fraction of the whole stretch."""


class Problem(Protocol):
    """What is integrated. Arguments have a row for every task still under way: those last named by `take`, or all."""

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt at t [A], y [A, D]."""

    def longest_step(self, t: Tensor) -> Tensor | None:
        """Cap on the step from t [A], where there is one."""

    def stable(self, y: Tensor, h: Tensor, good: Tensor) -> Tensor:
        """Whether a step of h [A] that ends at y may stand, looked at where the error test was `good`."""

    def observe(self, step: Attempt) -> None:
        """Sees every attempt, accepted or not."""

    def take(self, rows: Tensor) -> Self:
        """The same problem for some tasks of the whole batch."""


class Attempt:
    """One attempted step of the tasks `rows` (None: all); `h` [A] is 0 where it was rejected or the task has arrived."""

    def __init__(
        self, rows: Tensor | None, t: Tensor, h: Tensor, y: Tensor, states: list[Tensor], slopes: Tensor
    ) -> None:
        self.rows, self.t, self.h = rows, t, h
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


def integrate(
    problem: Problem, y: Tensor, start: float, end: float, solver: Adaptive, h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Carries y [B, D] from start to end > start. Returns it and the step sizes [B] that the controller would try next.

    Tasks that have arrived leave the computation. Raises SolveError for a task whose step underflows, whose state isn't
    finite however small the step, or that needs more than `solver.max_steps` attempts.
    """
    whole = problem
    t = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
    slope = problem.slope(t, y)
    if h is None:
        h = _first_step(problem, t, y, slope, solver)
    rows: Tensor | None = None
    for _ in range(solver.max_steps):
        t_now, y_now = _pick(t, rows), _pick(y, rows)
        trial = _trial(_pick(h, rows), problem.longest_step(t_now), end - t_now)
        attempt, ratio = _attempt(problem, solver, rows, t_now, trial, y, y_now, _pick(slope, rows))
        good = (ratio <= 1) & (trial > 0)
        good &= problem.stable(attempt.y_new, trial, good)
        _fail_where_too_small(~good & (trial > 0), trial, ratio, t_now, start, end, rows)
        attempt.h = trial * good
        problem.observe(attempt)
        t = _put(t, rows, torch.where(good, torch.where(trial >= end - t_now, end, t_now + trial), t_now))
        y = _put(y, rows, torch.where(good[:, None], attempt.y_new, y_now))
        slope = _put(slope, rows, torch.where(good[:, None], attempt.end_slope, _pick(slope, rows)))
        growth = (SAFETY * ratio ** (-1 / solver.tableau.order)).nan_to_num(SHRINK, GROW, SHRINK).clamp(SHRINK, GROW)
        growth = torch.where(good, growth, growth.clamp_max(SAFETY))
        h = _put(h, rows, torch.where(trial > 0, trial * growth, _pick(h, rows)))
        under_way = torch.nonzero(t < end).flatten()
        if len(under_way) == 0:
            return y, h
        # Leaving costs a copy of the tasks' data, so they leave in groups of a quarter.
        if 4 * len(under_way) <= 3 * len(t_now):
            rows, problem = under_way, whole.take(under_way)
    raise_where(t < end, Result.BUDGET_SPENT, t, bound=float(solver.max_steps))
    raise AssertionError("a task that hasn't arrived has been reported")


def _attempt(
    problem: Problem,
    solver: Adaptive,
    rows: Tensor | None,
    t: Tensor,
    h: Tensor,
    y: Tensor,
    y_now: Tensor,
    first: Tensor,
) -> tuple[Attempt, Tensor]:
    """The step and its error over tolerance [A] in float64 (NaN where it isn't finite)."""
    tableau = solver.tableau
    column = h.to(y.dtype)[:, None]
    times = [t + fraction * h for fraction in tableau.c]
    states, slopes = stages(lambda i, u: problem.slope(times[i], u), tableau, y_now, column, first)
    w = weights(tableau, y)
    attempt = Attempt(rows, t, h, y, states, slopes)
    attempt.y_new = y_now + column * combine(w.b, slopes)
    attempt.end_slope = problem.slope(t + h, attempt.y_new)
    error = combine(w.error[:-1], slopes).add_(attempt.end_slope * w.error[-1]).mul_(column)
    scale = torch.maximum(y_now.abs(), attempt.y_new.abs()).mul_(solver.rtol).add_(solver.atol)
    return attempt, _over_tolerance(error, scale)


def _over_tolerance(v: Tensor, scale: Tensor) -> Tensor:
    """The largest entry of v [A, D] over its share of the tolerance `scale` [A, D], in float64 [A]: a few parameters that
    move fast must not hide in the mean of many that don't."""
    return (v / scale).abs_().amax(dim=1).double() / SHARE


def _trial(h: Tensor, longest: Tensor | None, remaining: Tensor) -> Tensor:
    """The step to try: no longer than allowed, two equal steps rather than a long and a tiny one at the end."""
    if longest is not None:
        h = torch.minimum(h, longest)
    trial = torch.where(remaining <= h, remaining, torch.where(remaining < 2 * h, remaining / 2, h))
    return torch.where(remaining > 0, trial, 0.0)


def _first_step(problem: Problem, t: Tensor, y: Tensor, slope: Tensor, solver: Adaptive) -> Tensor:
    """Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4, for each task."""

    def size(v: Tensor) -> Tensor:
        return _over_tolerance(v, solver.atol + solver.rtol * y.abs())

    d0, d1 = size(y), size(slope)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    ahead = y + h0.to(y.dtype)[:, None] * slope
    d2 = size(problem.slope(t + h0, ahead) - slope) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / largest) ** (1 / solver.tableau.order))
    return torch.minimum(100 * h0, h1).nan_to_num(1e-6)


def _fail_where_too_small(
    rejected: Tensor, h: Tensor, ratio: Tensor, t: Tensor, start: float, end: float, rows: Tensor | None
) -> None:
    too_small = rejected & (h < SMALLEST_STEP * (end - start))
    raise_where(too_small & ~ratio.isfinite(), Result.NON_FINITE, t, rows=rows)
    raise_where(too_small, Result.STEP_UNDERFLOW, t, value=h, rows=rows)


def _pick(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _put(values: Tensor, rows: Tensor | None, new: Tensor) -> Tensor:
    return new if rows is None else values.index_copy(0, rows, new)
