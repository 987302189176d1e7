"""Dense output: the state at any time within a segment of a solved trajectory, each task at its own time."""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.tableau import Tableau
from amaml.flow.trajectory import Round, Trajectory


class DenseOutput:
    """The steps of one segment, recomputed from the state before it, for the whole batch: times and step sizes [B] (0 where a
    task took no step), and states and slopes [B, P] at both ends of every step; also the state at its middle, where the tableau
    has weights for it."""

    def __init__(self, trajectory: Trajectory, segment: int, u: Tensor) -> None:
        self.rounds = [trajectory.rounds[number] for number in trajectory.rounds_of(segment)]
        self.states = [u]
        """The states before each round, and after the last."""
        self.times = [trajectory.interval(segment)[0]]
        """The times of `states`."""
        self.steps: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.end_slopes: list[Tensor] = []
        self.middles: list[Tensor] = []
        self._field: GradientFlow | None = None
        for round_ in self.rounds:
            self._make(round_, trajectory.tableau)

    def _make(self, round_: Round, tableau: Tableau) -> None:
        field, rows, u = round_.field, round_.field.rows, self.states[-1]
        own = u if rows is None else u[rows]
        first = None
        if self._field is field:  # the same tasks as in the round before
            first = self.end_slopes[-1] if rows is None else self.end_slopes[-1][rows]
        self._field = field
        states, slopes = stages(lambda _, v: field(v), tableau, own, round_.h, first)
        after = own + round_.h * combine(weights(tableau, u).b, slopes)
        end_slope = field(after)
        if tableau.midpoint is not None:
            w = weights(tableau, u).midpoint
            inside = combine(w[:-1], slopes) + end_slope * w[-1]
            self.middles.append(_whole(states[0] + round_.h * inside, u, rows))
        step = round_.h[:, 0].double() if isinstance(round_.h, Tensor) else u.new_full((len(own),), round_.h).double()
        self.steps.append(_whole(step, torch.zeros_like(self.times[-1]), rows))
        self.slopes.append(_whole(slopes[0], torch.zeros_like(u), rows))
        self.end_slopes.append(_whole(end_slope, torch.zeros_like(u), rows))
        self.states.append(_whole(after, u, rows))
        self.times.append(self.times[-1] + self.steps[-1])


def _whole(values: Tensor, others: Tensor, rows: Tensor | None) -> Tensor:
    """Values for the whole batch: `values` for the tasks `rows`, `others` for the rest."""
    return values.clone() if rows is None else others.index_copy(0, rows, values)


class Interpolant:
    """u(t) of every task within the steps that it took: the quartic through a step's ends and middle (Shampine 1986) where the
    solver computes the middle, otherwise the cubic Hermite interpolant."""

    def __init__(self, dense: DenseOutput) -> None:
        self._steps = torch.stack(dense.steps)  # [R, B]
        self._starts = torch.stack(dense.times[:-1])
        taken = self._steps > 0
        count = taken.sum(dim=0)
        # The numbers of the rounds in which each task took a step, in order: [N, B]; a task with fewer steps repeats its last.
        order = torch.argsort((~taken).to(torch.uint8), dim=0, stable=True)[: max(1, int(count.max()))]
        number = torch.arange(len(order), device=order.device)[:, None]
        last = order.gather(0, (count - 1).clamp_min(0)[None])
        self._rounds = torch.where(number < count, order, last)
        times = self._starts.gather(0, self._rounds).masked_fill_(number >= count, float("inf"))
        self._times = times.T.contiguous()  # [B, N]
        self._states = torch.stack(dense.states)  # [R + 1, B, P]
        self._slopes, self._end_slopes = torch.stack(dense.slopes), torch.stack(dense.end_slopes)
        self._middles = torch.stack(dense.middles) if dense.middles else None

    def __call__(self, t: Tensor, rows: Tensor) -> Tensor:
        """u [A, P] of the tasks `rows` [A] at their times t [A]."""
        number = torch.searchsorted(self._times[rows], t[:, None], right=True).flatten().sub_(1).clamp_min_(0)
        at = (self._rounds[number, rows], rows)
        step = self._steps[at]
        x = torch.where(step > 0, (t - self._starts[at]) / step, 0.0).to(self._states.dtype)[:, None]
        h = step.to(self._states.dtype)[:, None]
        u0, u1 = self._states[at], self._states[at[0] + 1, rows]
        f0, f1 = h * self._slopes[at], h * self._end_slopes[at]
        # In differences from u0, so that rounding doesn't cancel digits of u: d = u1 − u0, m = u_middle − u0.
        d = u1 - u0
        if self._middles is None:
            return u0 + x * (f0 + x * ((3 * d - 2 * f0 - f1) + x * (f0 + f1 - 2 * d)))
        m = self._middles[at] - u0
        return u0 + x * (
            f0
            + x
            * (
                (f1 - 4 * f0 - 5 * d + 16 * m)
                + x * ((5 * f0 - 3 * f1 + 14 * d - 32 * m) + x * (2 * (f1 - f0) - 8 * d + 16 * m))
            )
        )
