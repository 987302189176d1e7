"""What every method's spec has: how θ's meta-gradient is estimated, as a job names it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from amaml.adjoint.spec import AdjointSpec
from amaml.spec.part import Part

if TYPE_CHECKING:
    from amaml.spec import SolverSpec, TrajectorySpec

Learnable = Literal["length", "rates", "proximal"]
"""What of the inner flow can be trained beside θ."""


class MethodSpec(Part):
    """Base of the methods' specs. Each says its `proximal`, the ρ of its inner flow in training and evaluation."""

    summary: ClassVar[str]
    implementation: ClassVar[str | None]
    """`module:function` that estimates the meta-gradient, which the registry alone imports; None for the method that trains
    nothing."""
    exact: ClassVar[bool] = False
    """Whether it gives the training objective's own gradient, whose error a certificate can measure."""
    descends: ClassVar[bool] = False
    """Whether its inner steps are gradient descent by definition, so that its solver is euler."""
    flow_can_be_learned: ClassVar[bool] = False
    """Whether its inner flow may have a length, rates and a proximal strength that were learned."""
    cost: ClassVar[float] = 1.0
    """Of a meta-iteration, in those of Reptile, roughly: by what a preset gives every method the same time."""
    kind: str

    @property
    def trains(self) -> bool:
        """Whether there is anything to train; where there isn't, the random start is evaluated once."""
        return self.implementation is not None

    @property
    def learned(self) -> Sequence[Learnable]:
        """What it trains beside θ."""
        return ()

    @property
    def own_adjoint(self) -> AdjointSpec | None:
        """The adjoint that it names; None where it takes none, or leaves it to the solver."""
        return None

    def with_adjoint(self, adjoint: AdjointSpec) -> Self:
        """The same with this adjoint, where it takes one and names none."""
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of its implementation, beside the adjoint and those that say which flow to solve."""
        return {}

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        """(gradients, Hessian-vector products) that it takes for one task in one meta-iteration, where the forward solve alone
        takes `forward` gradients, and together with its adjoint `gradients` and `hvps`."""
        return gradients, hvps

    def check(self, solver: SolverSpec, trajectory: TrajectorySpec) -> None:
        """Raises RuleBroken, for a field of the job spec, where the job's solver or trajectory don't suit the method."""
