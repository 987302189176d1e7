"""The stability guard: how stiff the flow is where it is, by power iteration.

An adaptive controller holds the state at tolerance while its steps sit at the stability limit, where the adjoint blows
up. So the largest eigenvalue λmax of √α(∇²L+ρ)√α is followed along the trajectory, and h·λmax is capped. What that misses
the way back can't: λ turns into the direction that blows up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow
from amaml.flow.result import Failure, Result, SolveError
from amaml.flow.tableau import Tableau
from amaml.flow.trajectory import Trajectory

FIRST_ITERATIONS = 12
"""HVPs at t=0; later one a step suffices, since the vector is warm."""
FRESH = 0.1
"""Of the start vector in every look. Without it the vector forgets all directions but the stiffest, and one that becomes
stiff later is never found. With it an estimate is low: by half a percent where one eigenvalue stands out, by up to a tenth
where many lie close below it; caps and limits have room for that."""


def start_vector(like: Tensor) -> Tensor:
    """Where every power iteration starts: a fixed direction of length 1, as many numbers as `like` [P]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=torch.float64, device="cpu")
    start /= start.norm()
    return start.to(like)


class PowerIteration:
    """Follows the dominant eigenvector of every task of the whole batch. The start vector is fixed and the warm start
    lives within one solve, so that results don't depend on what was solved before."""

    def __init__(self, field: GradientFlow, u: Tensor) -> None:
        self._start = start_vector(u[0])
        self.vector = self._start.expand_as(u).clone()
        """[B, P], each row of length 1."""
        self.lambda_max = u.new_zeros(len(u))
        """Latest estimate [B]."""
        for _ in range(FIRST_ITERATIONS):
            self.follow(*self.look(field, u), field.rows)

    def look(self, field: GradientFlow, u: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration for the tasks of `field` at u [A, P]: the next vectors [A, P] and the estimates of λmax [A]."""
        vector = self.vector if field.rows is None else self.vector[field.rows]
        mixed = torch.add(vector, self._start, alpha=FRESH)
        product = field.curvature(u, mixed.div_(mixed.norm(dim=1, keepdim=True)))
        size = product.norm(dim=1)
        flat = size == 0  # no curvature along the vector: keep it, the estimate is 0
        return torch.where(flat[:, None], vector, product / torch.where(flat, 1.0, size)[:, None]), size

    def follow(self, vector: Tensor, lambda_max: Tensor, rows: Tensor | None) -> None:
        """Takes over a look, for these tasks (None: all)."""
        if rows is None:
            self.vector, self.lambda_max = vector, lambda_max
        else:
            self.vector = self.vector.index_copy(0, rows, vector)
            self.lambda_max = self.lambda_max.index_copy(0, rows, lambda_max)


class Lookout:
    """Watches the steps back of a whole batch [B] for what an h·λmax over the solver's limit does to λ.

    Over the limit by a factor r, a step of s stages lets λ grow by about r^(s+1). A moment of that is harmless; what grows on
    is not the flow's. A fixed step is more its user's choice: it fails where the gradient is sure to make no sense.
    """

    GROWTH_OF_FLOW, GROWTH_OF_FIXED_STEPS = 2.0, 100.0

    def __init__(self, like: Tensor, tableau: Tableau, *, fixed: bool) -> None:
        self._limit, self._power = tableau.stability_limit, tableau.stages + 1
        self._allowed = math.log(self.GROWTH_OF_FIXED_STEPS if fixed else self.GROWTH_OF_FLOW)
        self._least = torch.finfo(like.dtype).tiny ** 0.5
        self._growth = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self.product = torch.full_like(self._growth, float("nan"))
        """h·λmax where λ had grown too much; NaN where it hasn't."""
        self.number = torch.zeros_like(self.product, dtype=torch.int64)
        """Of the step in which it had."""

    def see(self, field: GradientFlow, number: int, h: float | Tensor, seed: Tensor, pulled: Tensor) -> None:
        """Step `number` took k̄ = `seed` to Ū = (∂f/∂u)ᵀ k̄ = `pulled`, both [A, P]: how stiff the flow is along k̄."""
        before, after = field.symmetric_norm(seed), field.symmetric_norm(pulled)
        after = after * (h[:, 0] if isinstance(h, Tensor) else h)
        if not bool((after > self._limit * before).any()):  # as it nearly always is: watching must be cheap
            return
        product = after.double() / torch.where(before > self._least, before, float("nan"))  # λ may have died out
        over = (product / self._limit).log().nan_to_num(0.0, float("inf"), 0.0).clamp_min(0.0)
        rows = slice(None) if field.rows is None else field.rows
        self._growth[rows] += self._power * over
        failed = (self._growth[rows] > self._allowed) & self.product[rows].isnan()
        self.product[rows] = torch.where(failed, product, self.product[rows])
        self.number[rows] = torch.where(failed, number, self.number[rows])

    def fail_where_seen(self, trajectory: Trajectory) -> None:
        """Raises SolveError for the tasks whose way back along the trajectory saw what the guard's estimates had missed."""
        failures = []
        for task in torch.nonzero(~self.product.isnan()).flatten().tolist():
            product, number = float(self.product[task]), int(self.number[task])
            bound, time = trajectory.remedy(number, product, self._limit), trajectory.time_of(number, task)
            failures.append(Failure(Result.STABILITY_LIMIT, task, time, product, bound))
        if failures:
            raise SolveError(failures)
