"""Dense output: the state anywhere along a solved trajectory, for every task at times of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.flow.control import Attempt
from amaml.flow.field import GradientFlow
from amaml.flow.guard import PowerIteration
from amaml.flow.runge_kutta import combine, stages, weights
from amaml.flow.tableau import Tableau


class DenseOutput:
    """What interpolation needs of every round of a solve, in whole-batch rows: [B] times and step sizes (0 where the task
    took no step), [B, P] states, slopes at both ends and, with a fourth-order tableau, the state at the middle."""

    def __init__(self) -> None:
        self.times: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.states: list[Tensor] = []
        """Before the round."""
        self.slopes: list[Tensor] = []
        self.end_slopes: list[Tensor] = []
        self.middles: list[Tensor] = []
        self.lambda_max: list[Tensor] = []
        """At the round's end, where the guard looks."""

    def __len__(self) -> int:
        return len(self.times)

    def step(self, field: GradientFlow, tableau: Tableau, u: Tensor, t: float, h: float) -> Tensor:
        """One fixed step of the whole batch, recorded."""
        first = self.end_slopes[-1] if self.end_slopes else None
        _, slopes = stages(lambda _, v: field(v), tableau, u, h, first)
        after = u + h * combine(weights(tableau, u).b, slopes)
        self.times.append(torch.full((len(u),), t, dtype=torch.float64, device=u.device))
        self.steps.append(torch.full_like(self.times[-1], h))
        self.states.append(u)
        self.slopes.append(slopes[0].clone())
        self.end_slopes.append(field(after))
        return after

    def record(self, attempt: Attempt, tableau: Tableau, power: PowerIteration | None) -> None:
        """Keeps an adaptive step."""

        def whole(values: Tensor) -> Tensor:
            if attempt.rows is None:
                return values.clone()
            return values.new_zeros((len(attempt.y), *values.shape[1:])).index_copy_(0, attempt.rows, values)

        self.times.append(whole(attempt.t))
        self.steps.append(whole(attempt.h))
        self.states.append(attempt.y)
        self.slopes.append(whole(attempt.slopes[0]))
        self.end_slopes.append(whole(attempt.end_slope))
        if power is not None:
            self.lambda_max.append(power.lambda_max)
        if tableau.midpoint is not None:
            w = weights(tableau, attempt.y).midpoint
            inside = combine(w[:-1], attempt.slopes) + attempt.end_slope * w[-1]
            self.middles.append(whole(attempt.states[0] + attempt.column * inside))


class Interpolant:
    """u(t) of every task between the steps it took: quartic through the step's ends and middle (Shampine 1986) where the
    solver has one, else the cubic of Hermite."""

    def __init__(self, dense: DenseOutput, end: Tensor) -> None:
        steps = torch.stack(dense.steps)  # [R, B]
        taken = steps > 0
        count = taken.sum(dim=0)
        # The rounds of each task's own steps, in order: [N, B]; a task with fewer repeats its last.
        order = torch.argsort((~taken).to(torch.uint8), dim=0, stable=True)[: int(count.max())]
        number = torch.arange(len(order), device=order.device)[:, None]
        last = order.gather(0, (count - 1)[None])
        self._rounds = torch.where(number < count, order, last)
        self._times = torch.stack(dense.times).gather(0, self._rounds)
        self._times.masked_fill_(number >= count, float("inf"))
        self._times = self._times.T.contiguous()  # [B, N]
        self._steps = steps
        self._starts = torch.stack(dense.times)
        self._states = torch.stack([*dense.states, end])  # [R + 1, B, P]
        # The state after a task's step is the state before its next one, or the end.
        following = torch.cat([self._rounds[1:], torch.full_like(self._rounds[:1], len(steps))])
        self._following = torch.where(number + 1 < count, following, len(steps))
        self._slopes, self._end_slopes = torch.stack(dense.slopes), torch.stack(dense.end_slopes)
        self._middles = torch.stack(dense.middles) if dense.middles else None
        self._lambda_max = torch.stack(dense.lambda_max) if dense.lambda_max else None

    def _locate(self, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For each of the tasks `rows` its step around t: its number among the task's own, and its round."""
        number = torch.searchsorted(self._times[rows], t[:, None], right=True).flatten().sub_(1).clamp_min_(0)
        return number, self._rounds[number, rows]

    def __call__(self, t: Tensor, rows: Tensor) -> Tensor:
        """u [A, P] of the tasks `rows` [A] at their times t [A]."""
        number, round_ = self._locate(t, rows)
        h64 = self._steps[round_, rows]
        x = ((t - self._starts[round_, rows]) / h64).to(self._states.dtype)[:, None]
        h = h64.to(self._states.dtype)[:, None]
        u0, u1 = self._states[round_, rows], self._states[self._following[number, rows], rows]
        f0, f1 = h * self._slopes[round_, rows], h * self._end_slopes[round_, rows]
        if self._middles is None:
            return u0 + x * (f0 + x * ((3 * (u1 - u0) - 2 * f0 - f1) + x * (2 * (u0 - u1) + f0 + f1)))
        # With differences to u0, so that no digits of u itself are lost: d = u1 − u0, m = u_middle − u0.
        d, m = u1 - u0, self._middles[round_, rows] - u0
        return u0 + x * (
            f0
            + x
            * (
                (f1 - 4 * f0 - 5 * d + 16 * m)
                + x * ((5 * f0 - 3 * f1 + 14 * d - 32 * m) + x * (2 * (f1 - f0) - 8 * d + 16 * m))
            )
        )

    def lambda_max(self, t: Tensor, rows: Tensor) -> Tensor | None:
        """The guard's estimate [A] at the end of the step around t; None where there was no guard."""
        if self._lambda_max is None:
            return None
        return self._lambda_max[self._locate(t, rows)[1], rows]
