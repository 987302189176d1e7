"""What a task family is to training and evaluation: a source of batches of tasks, a pure function of the seed."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Tasks = dict[str, Tensor]
"""A batch of tasks, standardised: `support_x` [B, n, d], `support_y` [B, n, o],
`query_x` [B, m, d], `query_y` [B, m, o]."""

Split = Literal["validation", "test"]


class Family(Protocol):
    in_features: int
    out_features: int

    def training_batch(self, iteration: int, size: int) -> Tasks:
        """The meta-batch of this meta-iteration: a function of (seed, iteration) alone: a resume needs no RNG."""

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        """The first `size` unseen tasks of the split; query points are the task's test points. Always the same."""
