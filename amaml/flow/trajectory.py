"""The result of a forward solve: the states at the horizons, and what the adjoint needs to recompute the steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.runge_kutta import StepSize, advance
from amaml.flow.snapshots import Snapshots
from amaml.flow.tableau import Tableau


@dataclass
class Solution:
    """A forward solve of a whole batch by any solver."""

    ends: list[Tensor]
    """u(T_k) [B, P] for every horizon."""
    steps: Tensor
    """Accepted steps [B]; −1 where the solver doesn't count them."""
    rejected: Tensor
    lambda_max: Tensor
    """The largest of the estimates of λmax along the trajectory [B]; NaN where none was made."""


def largest_step(horizons: Sequence[float], lambda_max: Tensor, limit: float) -> Tensor:
    """The largest value of a fixed-step solver's `step` with which h·λmax is at most nine tenths of the limit in every interval
    between horizons."""
    intervals = torch.tensor(horizons, dtype=torch.float64, device=lambda_max.device)
    intervals = torch.diff(intervals, prepend=torch.zeros_like(intervals[:1]))
    return (intervals / torch.ceil(intervals * lambda_max.double()[..., None] / (0.9 * limit))).amin(dim=-1)


@dataclass(frozen=True)
class Round:
    """One step of the tasks of `field` at once. h is a number, or [A, 1] with 0 for tasks that rejected the step or are at their
    end already."""

    field: GradientFlow
    h: StepSize

    def step_of(self, task: int) -> float:
        if isinstance(self.h, float):
            return self.h
        rows = self.field.rows
        place = torch.tensor([task]) if rows is None else torch.nonzero(rows == task).flatten()
        return float(self.h[place].sum())  # 0 where the task isn't among those of the round

    def advance(self, tableau: Tableau, u: Tensor) -> Tensor:
        """The whole batch's u [B, P] after this round."""
        rows = self.field.rows
        if rows is None:
            return advance(self.field, tableau, u, self.h)
        return u.index_copy(0, rows, advance(self.field, tableau, u[rows], self.h))


class Rounds:
    """The rounds of a solve in order; equal consecutive ones are stored once."""

    def __init__(self) -> None:
        self._runs: list[Round] = []
        self._starts: list[int] = []
        self._length = 0

    def append(self, round_: Round) -> None:
        if not self._runs or self._runs[-1] is not round_:
            self._runs.append(round_)
            self._starts.append(self._length)
        self._length += 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Round:
        return self._runs[bisect_right(self._starts, index) - 1]


@dataclass
class Trajectory(Solution):
    """A forward solve by the Runge–Kutta method of `tableau`, as rounds of steps, divided into segments.

    An adjoint recomputes one segment at a time from the state before it. Segments end after `snapshots.segment` rounds and at
    every horizon, whichever states are kept, so that the adjoint's result doesn't depend on how many are kept.
    """

    tableau: Tableau
    horizons: list[float]
    snapshots: Snapshots
    rounds: Rounds = field(default_factory=Rounds)
    cuts: list[int] = field(default_factory=list)
    """The number of the first round of each segment."""
    times: list[Tensor | float] = field(default_factory=list)
    """t at the start of each segment; [B] where step sizes differ from task to task."""
    arrivals: list[int] = field(default_factory=lambda: [0])
    """The number of segments up to each horizon, after a first 0."""

    @classmethod
    def start(
        cls, field: GradientFlow, batch: int, horizons: list[float], tableau: Tableau, snapshots: Snapshots
    ) -> Trajectory:
        """An empty trajectory for `batch` tasks."""
        steps, rejected = torch.zeros(2, batch, dtype=torch.int64, device=field.theta.device)
        unknown = field.theta.new_full((batch,), float("nan"))
        return cls([], steps, rejected, unknown, tableau, horizons, snapshots)

    def append(self, round_: Round, u: Tensor, t: Tensor | float) -> None:
        """Records a round that starts from u [B, P] at t [B]. The tensors aren't copied: don't write into them later."""
        if self._at_a_cut():
            self.snapshots.offer(len(self.cuts), u)
            self.cuts.append(len(self.rounds))
            self.times.append(t)
        self.rounds.append(round_)

    def _at_a_cut(self) -> bool:
        begun = self.arrivals[-1]
        return len(self.cuts) == begun or len(self.rounds) - self.cuts[-1] == self.snapshots.segment

    def arrive(self, u: Tensor) -> None:
        """Records u [B, P] as the state at the next horizon."""
        self.ends.append(u)
        self.arrivals.append(len(self.cuts))

    def rounds_of(self, segment: int) -> range:
        """The numbers of the segment's rounds."""
        last = segment + 1 == len(self.cuts)
        return range(self.cuts[segment], len(self.rounds) if last else self.cuts[segment + 1])

    def advance(self, segment: int, u: Tensor) -> Tensor:
        """u [B, P] after the segment from u before it."""
        for number in self.rounds_of(segment):
            u = self.rounds[number].advance(self.tableau, u)
        return u

    def interval(self, segment: int) -> tuple[Tensor, Tensor]:
        """t [B], in float64, at the segment's start and at its end."""
        last = segment + 1 in self.arrivals
        end = self.horizons[self.arrivals.index(segment + 1) - 1] if last else self.times[segment + 1]
        return self._for_all(self.times[segment]), self._for_all(end)

    def _for_all(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64, device=self.steps.device).expand(len(self.steps))

    def time_of(self, number: int, task: int) -> float:
        """The task's t at the start of the round."""
        return sum(self.rounds[earlier].step_of(task) for earlier in range(number))

    def remedy(self, number: int, product: float, limit: float) -> float:
        """The largest `step` with which fixed steps stay within the stability limit, given that h·λmax was `product` in round
        `number`; NaN for adaptive steps."""
        h = self.rounds[number].h
        if not isinstance(h, float):
            return float("nan")
        return float(largest_step(self.horizons, torch.tensor(product / h), limit))

    def between_horizons(self) -> Iterator[tuple[int, range]]:
        """(k, the segments between horizon k − 1 and horizon k), the last horizon first."""
        yield from reversed([(k, range(start, end)) for k, (start, end) in enumerate(pairwise(self.arrivals))])
