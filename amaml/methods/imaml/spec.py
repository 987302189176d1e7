"""Implicit MAML as a job names it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from amaml.methods.spec import MethodSpec


class ImamlSpec(MethodSpec):
    summary: ClassVar[str] = (
        "Implicit MAML (Rajeswaran et al. 2019): the proximal flow's minimum, differentiated by conjugate gradients."
    )
    implementation: ClassVar[str | None] = "amaml.methods.imaml.gradient:imaml"
    cost: ClassVar[float] = 1.5
    kind: Literal["imaml"] = "imaml"
    proximal: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """The proximal strength ρ (λ in the paper), which pulls the flow towards θ and divides the implicit gradient's curvature."""
    cg_steps: Annotated[int, Field(ge=1, le=1_000)] = 5
    """The number of conjugate-gradient steps, each of which costs one Hessian-vector product."""
    damping: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """A number added to the linear system's diagonal, which keeps it positive definite where the support loss isn't convex."""

    @property
    def arguments(self) -> dict[str, Any]:
        return {"proximal": self.proximal, "cg_steps": self.cg_steps, "damping": self.damping}

    def evaluations(self, forward: float, gradients: float, hvps: float) -> tuple[float, float]:
        return forward, self.cg_steps
