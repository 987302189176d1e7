"""The stability guard: a cap on the step by an estimate of the flow's stiffness, made by power iteration.

An adaptive controller keeps the error of the state within tolerance while its steps are as long as stability allows; at that
limit the discrete adjoint blows up. So the largest eigenvalue λmax of √α(∇²L+ρ)√α is estimated along the trajectory, and h·λmax
is capped. Where the estimate misses an unstable direction, the reverse steps find it: the adjoint λ turns into that direction.
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
"""Hessian-vector products at t=0; later one for each step suffices, since it continues from the previous step's vector."""
FRESH = 0.1
"""The weight of the start vector that is mixed into the vector before every iteration. Without it the vector would lose all
directions but the stiffest, and a direction that becomes stiff later would never be found. The mixing makes estimates too low:
by half a percent where one eigenvalue stands out, by up to a tenth where many lie close below it. The caps allow for that."""


def start_vector(like: Tensor) -> Tensor:
    """The start of every power iteration: a fixed direction of length 1 with the size of `like` [P]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=torch.float64, device="cpu")
    start /= start.norm()
    return start.to(like)


class PowerIteration:
    """Follows the dominant eigenvector of every task of the whole batch. The start vector is fixed, and vectors are kept within
    one solve only, so that results don't depend on earlier solves."""

    def __init__(self, field: GradientFlow, u: Tensor) -> None:
        self._start = start_vector(u[0])
        self.vector = self._start.expand_as(u).clone()
        """[B, P], each row of length 1."""
        self.lambda_max = u.new_zeros(len(u))
        """The latest estimate [B]."""
        for _ in range(FIRST_ITERATIONS):
            self.follow(*self.iterate(field, u), field.rows)

    def iterate(self, field: GradientFlow, u: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration for the tasks of `field` at u [A, P]: the next vectors [A, P] and the estimates of λmax [A]."""
        vector = self.vector if field.rows is None else self.vector[field.rows]
        mixed = torch.add(vector, self._start, alpha=FRESH)
        product = field.curvature(u, mixed.div_(mixed.norm(dim=1, keepdim=True)))
        size = product.norm(dim=1)
        flat = size == 0  # there is no curvature along the vector: it is kept, and the estimate is 0
        return torch.where(flat[:, None], vector, product / torch.where(flat, 1.0, size)[:, None]), size

    def follow(self, vector: Tensor, lambda_max: Tensor, rows: Tensor | None) -> None:
        """Takes over the result of an iteration for the tasks `rows` (None: all)."""
        if rows is None:
            self.vector, self.lambda_max = vector, lambda_max
        else:
            self.vector = self.vector.index_copy(0, rows, vector)
            self.lambda_max = self.lambda_max.index_copy(0, rows, lambda_max)


class ReverseGuard:
    """Watches the reverse steps of a whole batch [B] for an unstable growth of λ.

    Where h·λmax exceeds the solver's limit by a factor r, a step of s stages multiplies λ by about r^(s+1). A few such steps are
    harmless, but growth that adds up beyond a bound isn't the flow's. For fixed steps, which the user chose, the bound is
    higher: they fail only where the gradient is certainly useless.
    """

    GROWTH_OF_FLOW, GROWTH_OF_FIXED_STEPS = 2.0, 100.0

    def __init__(self, like: Tensor, tableau: Tableau, *, fixed: bool) -> None:
        self._limit, self._power = tableau.stability_limit, tableau.stages + 1
        self._allowed = math.log(self.GROWTH_OF_FIXED_STEPS if fixed else self.GROWTH_OF_FLOW)
        self._least = torch.finfo(like.dtype).tiny ** 0.5
        self._growth = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self.product = torch.full_like(self._growth, float("nan"))
        """h·λmax of the step at which λ had grown too much; NaN for tasks where it hasn't."""
        self.number = torch.zeros_like(self.product, dtype=torch.int64)
        """The number of that step."""

    def observe(self, field: GradientFlow, number: int, h: float | Tensor, cotangent: Tensor, product: Tensor) -> None:
        """Measures the stiffness along the stage's cotangent k̄ of step `number`, by Ū = (∂f/∂u)ᵀ k̄ = `product`; both [A, P]."""
        before, after = field.symmetric_norm(cotangent), field.symmetric_norm(product)
        after = after * (h[:, 0] if isinstance(h, Tensor) else h)
        if not bool((after > self._limit * before).any()):  # nearly always: this test must be cheap
            return
        product = after.double() / torch.where(before > self._least, before, float("nan"))  # λ may have vanished
        over = (product / self._limit).log().nan_to_num(0.0, float("inf"), 0.0).clamp_min(0.0)
        rows = slice(None) if field.rows is None else field.rows
        self._growth[rows] += self._power * over
        failed = (self._growth[rows] > self._allowed) & self.product[rows].isnan()
        self.product[rows] = torch.where(failed, product, self.product[rows])
        self.number[rows] = torch.where(failed, number, self.number[rows])

    def fail_where_unstable(self, trajectory: Trajectory) -> None:
        """Raises SolveError for the tasks whose reverse steps along the trajectory were unstable, which the guard had missed."""
        failures = []
        for task in torch.nonzero(~self.product.isnan()).flatten().tolist():
            product, number = float(self.product[task]), int(self.number[task])
            bound, time = trajectory.remedy(number, product, self._limit), trajectory.time_of(number, task)
            failures.append(Failure(Result.STABILITY_LIMIT, task, time, product, bound))
        if failures:
            raise SolveError(failures)
