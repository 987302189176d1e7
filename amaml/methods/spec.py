"""The base of every method's spec, by which a job names how the meta-gradient is estimated. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from amaml.adjoint.spec import AdjointSpec
from amaml.spec.part import Part

if TYPE_CHECKING:
    from amaml.spec import SolverSpec, TrajectorySpec

Learnable = Literal["length", "rates", "proximal"]
"""The quantities of the inner flow that can be trained in addition to θ."""


class MethodSpec(Part):
    """Base of the methods' specs. Each defines `proximal`, the ρ of its inner flow in training and evaluation."""

    summary: ClassVar[str]
    implementation: ClassVar[str | None]
    """The `module:function` that estimates the meta-gradient, which only the registry imports; None for the method that trains
    nothing."""
    exact: ClassVar[bool] = False
    """Whether the method computes the gradient of the training objective itself, whose error a certificate can measure."""
    descends: ClassVar[bool] = False
    """Whether its inner steps are gradient descent by definition, so that its solver is euler."""
    flow_can_be_learned: ClassVar[bool] = False
    """Whether the length, rates and proximal strength of its inner flow may be learned."""
    cost: ClassVar[float] = 1.0
    """The approximate cost of a meta-iteration relative to Reptile's, by which a preset gives every method the same time."""
    kind: str

    @property
    def trains(self) -> bool:
        """Whether the method trains anything; if not, the random initialization is evaluated once."""
        return self.implementation is not None

    @property
    def learned(self) -> Sequence[Learnable]:
        """The quantities of the flow that the method trains in addition to θ."""
        return ()

    @property
    def own_adjoint(self) -> AdjointSpec | None:
        """The adjoint that the spec names; None where the method has none or the solver decides."""
        return None

    def with_adjoint(self, adjoint: AdjointSpec) -> Self:
        """The spec with this adjoint, if the method has an adjoint and the spec names none; else the spec unchanged."""
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of its implementation, apart from the adjoint and those that define the flow."""
        return {}

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        """The numbers (gradients, Hessian-vector products) that the method needs for one task in one meta-iteration. The forward
        solve alone needs `forward` gradients; together with its adjoint it needs `gradients` and `hvps`."""
        return gradients, hvps

    def check(self, solver: SolverSpec, trajectory: TrajectorySpec) -> None:
        """Raises RuleBroken, naming a field of the job spec, if the job's solver or trajectory doesn't suit the method."""
