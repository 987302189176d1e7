"""What a task family is to training and evaluation: a source of batches of tasks, a pure function of the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor

from amaml.families.scaling import Scaling
from amaml.objectives import Objective

Tasks = dict[str, Tensor]
"""A batch of tasks, standardised: `support_x` [B, n, d], `support_y` [B, n, o],
`query_x` [B, m, d], `query_y` [B, m, o]. Where y is a class, o is the number of classes and y one-hot."""

Split = Literal["validation", "test"]


class DataError(ValueError):
    """The data can't serve the spec; the message says which data, how many would be needed, and the remedy."""


class Family(Protocol):
    objective: Objective
    """The losses that train and judge a network, and the metric that evaluations report."""
    in_features: int
    out_features: int
    scaling: Scaling
    """Fitted on training tasks alone."""
    inputs: list[str]
    """What each of the `in_features` numbers is: a coordinate, or the item that a one-hot feature stands for. One entry
    for all of them where they are a picture's."""
    outputs: list[str]
    """What each of the `out_features` numbers is: a quantity, or the class whose score it is."""

    picture: tuple[int, int, int] | None
    """(channels, height, width) of the picture that a row of inputs is, laid out in this order; None where it is none."""
    counts: Mapping[str, int]
    """What was found in the data: `tasks_train`, `tasks_left_out` and the like, which a run tells as metrics of its start;
    empty where tasks are drawn from a formula."""

    def training_batch(self, iteration: int, size: int) -> Tasks:
        """The meta-batch of this meta-iteration: a function of (seed, iteration, size) alone: a resume needs no RNG."""

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        """The first `size` unseen tasks of the split (all of them if it has fewer); query points are the task's test
        points. Always the same. Raises DataError where the split has no task."""

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """What predicts the same batch's `query_y` without a network: name → [B, m, o], standardised, or a score a class. `zero`,
        the training tasks' mean, is in every family that regresses."""
