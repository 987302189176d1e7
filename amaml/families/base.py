"""The interface of a task family for training and evaluation: a source of batches of tasks, which depend on the seed alone."""

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
    """The standardisation, fitted on training tasks alone."""
    inputs: list[str]
    """The meaning of each of the `in_features` numbers: a coordinate, or the item that a one-hot feature stands for; a single
    entry for all pixels of a picture."""
    outputs: list[str]
    """The meaning of each of the `out_features` numbers: a quantity, or the class whose score it is."""

    picture: tuple[int, int, int] | None
    """(channels, height, width) of the picture that a row of inputs contains, in this order; None where inputs are no
    pictures."""
    counts: Mapping[str, int]
    """Counts found in the data (`tasks_train`, `tasks_left_out` and the like), which a run reports as metrics at its start; empty
    where tasks are drawn from a formula."""

    def training_batch(self, iteration: int, size: int) -> Tasks:
        """The meta-batch of this meta-iteration. It depends on (seed, iteration, size) alone, so a resumed run needs no state
        of it."""

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        """The first `size` unseen tasks of the split (all of them if it has fewer), always the same; their query points are the
        tasks' test points. Raises DataError where the split has no task."""

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """Predictions of the same batch's `query_y` without a network: name → [B, m, o], standardised values or a score for
        each class. Every family that regresses has `zero`, the training tasks' mean."""
