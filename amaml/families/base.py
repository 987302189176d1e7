"""What a task family is to training and evaluation: a source of batches of tasks, a pure function of the seed."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from amaml.families.scaling import Scaling

Tasks = dict[str, Tensor]
"""A batch of tasks, standardised: `support_x` [B, n, d], `support_y` [B, n, o],
`query_x` [B, m, d], `query_y` [B, m, o]."""

Split = Literal["validation", "test"]


class DataError(ValueError):
    """The data can't serve the spec; the message says which data, how many would be needed, and the remedy."""


class Family(Protocol):
    in_features: int
    out_features: int
    scaling: Scaling
    """Fitted on training tasks alone."""
    inputs: list[str]
    """What each of the `in_features` numbers is: a coordinate, or the item that a one-hot feature stands for."""

    def training_batch(self, iteration: int, size: int) -> Tasks:
        """The meta-batch of this meta-iteration: a function of (seed, iteration, size) alone: a resume needs no RNG."""

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        """The first `size` unseen tasks of the split (all of them if it has fewer); query points are the task's test
        points. Always the same."""

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """What predicts the same batch's `query_y` without a network: name → [B, m, o], standardised. `zero`, the
        training tasks' mean, is in every family."""
