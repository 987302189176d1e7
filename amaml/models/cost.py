"""What a model adds to a run's cost, told from its spec and the sizes of its inputs and outputs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCost:
    parameters: int
    multiplications: float
    """Of one data point's forward pass, in those of a matrix product."""
    activations: int
    """Numbers that one data point's forward pass leaves."""
    call_seconds: tuple[float, float] = (0.0, 0.0)
    """What a (gradient, Hessian-vector product) of a whole batch takes before its arithmetic counts, whatever the loss is."""
