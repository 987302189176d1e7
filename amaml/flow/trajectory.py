"""What a forward solve leaves: where it led, and enough to run along it again in either direction."""

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
    """Accepted steps [B]; −1 where the solver doesn't tell."""
    rejected: Tensor
    lambda_max: Tensor
    """Largest estimate along the way [B] of the Hessian's largest eigenvalue; NaN where there was none."""


def largest_step(horizons: Sequence[float], lambda_max: Tensor, limit: float) -> Tensor:
    """The largest step option with which equal steps to the horizons have h·λmax of at most nine tenths of the limit."""
    intervals = torch.tensor(horizons, dtype=torch.float64, device=lambda_max.device)
    intervals = torch.diff(intervals, prepend=torch.zeros_like(intervals[:1]))
    return (intervals / torch.ceil(intervals * lambda_max.double()[..., None] / (0.9 * limit))).amin(dim=-1)


@dataclass(frozen=True)
class Round:
    """One step of the tasks of `field`: h is a number, or [A, 1] with 0 for tasks that rejected it or have arrived."""

    field: GradientFlow
    h: StepSize

    def step_of(self, task: int) -> float:
        if isinstance(self.h, float):
            return self.h
        rows = self.field.rows
        place = torch.tensor([task]) if rows is None else torch.nonzero(rows == task).flatten()
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
    """A forward solve by the Runge–Kutta methods of `tableau`, as rounds of steps, cut into segments.

    A way back recomputes a segment at a time from the state before it. Segments end after `snapshots.segment` rounds and at
    every horizon, whichever states are kept, so that the way back doesn't depend on how many there are.
    """

    tableau: Tableau
    horizons: list[float]
    snapshots: Snapshots
    rounds: Rounds = field(default_factory=Rounds)
    cuts: list[int] = field(default_factory=list)
    """Number of the round at which each segment begins; the number of rounds at the end."""
    times: list[Tensor | float] = field(default_factory=list)
    """t at the cuts, [B] where step sizes differ from task to task."""
    arrivals: list[int] = field(default_factory=lambda: [0])
    """Number of segments up to each horizon, 0 first."""

    @classmethod
    def start(
        cls, field: GradientFlow, batch: int, horizons: list[float], tableau: Tableau, snapshots: Snapshots
    ) -> Trajectory:
        """Nothing solved yet, for so many tasks."""
        steps, rejected = torch.zeros(2, batch, dtype=torch.int64, device=field.theta.device)
        unknown = field.theta.new_full((batch,), float("nan"))
        return cls([], steps, rejected, unknown, tableau, horizons, snapshots)

    def append(self, round_: Round, u: Tensor, t: Tensor | float) -> None:
        """Takes up a round that starts from u [B, P] at t [B]. The tensors aren't copied: don't write into them later."""
        if self._at_a_cut():
            self.snapshots.offer(len(self.cuts), u)
            self.cuts.append(len(self.rounds))
            self.times.append(t)
        self.rounds.append(round_)

    def _at_a_cut(self) -> bool:
        begun = self.arrivals[-1]
        return len(self.cuts) == begun or len(self.rounds) - self.cuts[-1] == self.snapshots.segment

    def arrive(self, u: Tensor) -> None:
        """Ends the way to the next horizon at u [B, P]."""
        self.ends.append(u)
        self.arrivals.append(len(self.cuts))

    def rounds_of(self, segment: int) -> range:
        """Numbers of the rounds in it."""
        last = segment + 1 == len(self.cuts)
        return range(self.cuts[segment], len(self.rounds) if last else self.cuts[segment + 1])

    def advance(self, segment: int, u: Tensor) -> Tensor:
        """u [B, P] after the segment from u before it."""
        for number in self.rounds_of(segment):
            u = self.rounds[number].advance(self.tableau, u)
        return u

    def interval(self, segment: int) -> tuple[Tensor, Tensor]:
        """t [B], in float64, at its start and at its end."""
        last = segment + 1 in self.arrivals
        end = self.horizons[self.arrivals.index(segment + 1) - 1] if last else self.times[segment + 1]
        return self._for_all(self.times[segment]), self._for_all(end)

    def _for_all(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64, device=self.steps.device).expand(len(self.steps))

    def time_of(self, number: int, task: int) -> float:
        """Where the round begins for the task."""
        return sum(self.rounds[earlier].step_of(task) for earlier in range(number))

    def remedy(self, number: int, product: float, limit: float) -> float:
        """The largest step option that keeps fixed steps inside the stability limit, where h·λmax = `product` was met in the
        round; NaN for steps that a controller chose."""
        h = self.rounds[number].h
        if not isinstance(h, float):
            return float("nan")
        return float(largest_step(self.horizons, torch.tensor(product / h), limit))

    def between_horizons(self) -> Iterator[tuple[int, range]]:
        """(k, segments from the horizon before the k-th to the k-th), the last horizon first."""
        yield from reversed([(k, range(start, end)) for k, (start, end) in enumerate(pairwise(self.arrivals))])
