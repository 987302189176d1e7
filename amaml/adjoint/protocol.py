"""What an adjoint is: the way back along a forward solve, a vector–Jacobian product of the flow."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.snapshots import Snapshots


@runtime_checkable
class Adjoint(Protocol):
    """A way back."""

    @property
    def controlled(self) -> bool:
        """Whether λ is held at tolerance, so that the forward steps need no guard for it."""

    @property
    def exact(self) -> bool:
        """Whether it differentiates the forward solver's own steps rather than the flow."""

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        """What the forward solve has to keep; `rounds` are its numbers of steps to each horizon, where they are known, and
        `state_bytes` is what one state of all tasks takes."""

    def vjp(
        self, field: GradientFlow, solution: Any, cotangents: list[Tensor], sensitivity: Sensitivity, rtol: float
    ) -> Tensor:
        """λ(0) [B, P] of a solution of the kind that it follows; λ jumps by `cotangents[k]` [B, P] at the k-th horizon.
        `rtol` is the tolerance of λ. What the flow's own parameters see of it goes to `sensitivity`."""
