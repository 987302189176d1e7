"""A task family's contribution to a run's estimated cost, from its spec alone. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

CallSeconds = tuple[float, float]
"""The overhead in seconds of a gradient and of a Hessian-vector product of a whole batch, apart from arithmetic."""

WRITTEN_OUT: CallSeconds = (0.0, 0.0)
"""The overhead where derivatives are written out, as for an MLP that regresses."""
TRACED: CallSeconds = (1.2e-3, 2e-3)
"""The overhead where torch.func traces the derivatives of a loss."""


@dataclass(frozen=True)
class FamilyCost:
    inputs: int
    """The network's sizes."""
    outputs: int
    support_points: int
    """A task's sizes."""
    query_points: int
    picture: tuple[int, int, int] | None = None
    """(channels, height, width) of the inputs, where they are pictures."""
    passes: float = 1.0
    """The cost of the loss in forward passes of the network per data point."""
    call_seconds: CallSeconds = WRITTEN_OUT
    numbers_held: int = 0
    """The numbers that its tasks keep in memory during the whole run."""
