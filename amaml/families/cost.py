"""What a task family adds to a run's cost, told from its spec alone. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

CallSeconds = tuple[float, float]
"""What a (gradient, Hessian-vector product) of a whole batch takes before its arithmetic counts."""

WRITTEN_OUT: CallSeconds = (0.0, 0.0)
"""Where derivatives are written out, as for an MLP that regresses."""
TRACED: CallSeconds = (1.2e-3, 2e-3)
"""Where torch.func traces the derivatives of a loss."""


@dataclass(frozen=True)
class FamilyCost:
    inputs: int
    """Of the network."""
    outputs: int
    support_points: int
    """Of a task."""
    query_points: int
    picture: tuple[int, int, int] | None = None
    """(channels, height, width) of the inputs, where they are pictures."""
    passes: float = 1.0
    """How much more a loss takes than one forward pass of the network a data point."""
    call_seconds: CallSeconds = WRITTEN_OUT
    numbers_held: int = 0
    """Of its tasks, in memory for the whole run."""
