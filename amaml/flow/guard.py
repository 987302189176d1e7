"""The stability guard: how stiff the flow is where it is, by power iteration.

An adaptive controller holds the state at tolerance while its steps sit at the stability limit, where the adjoint blows
up. So the largest eigenvalue λmax of √α(∇²L+ρ)√α is followed along the trajectory, and h·λmax is capped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amaml.flow.field import GradientFlow

FIRST_ITERATIONS = 12
"""HVPs at t=0; later one a step suffices, since the vector is warm."""


def start_vector(like: Tensor) -> Tensor:
    """Where every power iteration starts: a fixed direction of length 1, as many numbers as `like` [P]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=torch.float64)
    start /= start.norm()
    return start.to(like)


class PowerIteration:
    """Follows the dominant eigenvector of every task of the whole batch. The start vector is fixed and the warm start
    lives within one solve, so that results don't depend on what was solved before."""

    def __init__(self, field: GradientFlow, u: Tensor) -> None:
        self.vector = start_vector(u[0]).expand_as(u).clone()
        """[B, P], each row of length 1."""
        self.lambda_max = u.new_zeros(len(u))
        """Latest estimate [B]."""
        for _ in range(FIRST_ITERATIONS):
            self.follow(*self.look(field, u), field.rows)

    def look(self, field: GradientFlow, u: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration for the tasks of `field` at u [A, P]: the next vectors [A, P] and the estimates of λmax [A]."""
        vector = self.vector if field.rows is None else self.vector[field.rows]
        product = field.curvature(u, vector)
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
