"""The interface of an adjoint: the vector-Jacobian product of the flow, computed backwards along a forward solve."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.snapshots import Snapshots


@runtime_checkable
class Adjoint(Protocol):
    """Computes λ(0) from the derivatives of the loss at the horizons."""

    @property
    def controlled(self) -> bool:
        """Whether the error of λ is controlled, so that the forward steps need no stability guard."""

    @property
    def exact(self) -> bool:
        """Whether it differentiates the forward solver's steps rather than the continuous flow."""

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        """The states that the forward solve has to keep. `rounds` are the numbers of steps between horizons, where they are known
        beforehand; `state_bytes` is the size of one state of all tasks."""

    def vjp(
        self, field: GradientFlow, solution: Any, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        """λ(0) [B, P] for a solution of the kind that this adjoint can follow; λ jumps by `cotangents[k]` [B, P] at horizon k.
        `rtol` is the tolerance of λ. Derivatives with respect to the flow's own parameters are added to `sensitivity`."""
