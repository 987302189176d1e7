"""A model's contribution to a run's estimated cost, from its spec and the sizes of its inputs and outputs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCost:
    parameters: int
    multiplications: float
    """The multiplications of one data point's forward pass, in those of a matrix product."""
    activations: int
    """The activations that one data point's forward pass stores."""
    call_seconds: tuple[float, float] = (0.0, 0.0)
    """The overhead in seconds of a gradient and of a Hessian-vector product of a whole batch, apart from arithmetic, for any
    loss."""
