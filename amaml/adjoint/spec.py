"""The adjoints as a job names them. Imports no torch.

A spec's fields are the arguments of the class that it names.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.spec.part import Part


class DiscreteSpec(Part):
    """Exact reverse of the accepted forward steps."""

    implementation: ClassVar[str] = "amaml.adjoint.discrete:Discrete"
    controls_lambda: ClassVar[bool] = False
    kind: Literal["discrete"] = "discrete"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """States kept at any time (binomial schedule); null keeps about √N."""


class InterpolatedSpec(Part):
    """The paper's: the adjoint ODE by its own solver, with λ at tolerance, over the forward trajectory's dense output."""

    implementation: ClassVar[str] = "amaml.adjoint.interpolated:Interpolated"
    kind: Literal["interpolated"] = "interpolated"
    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """As of discrete; beside them 16 steps' dense output is in memory."""

    @property
    def controls_lambda(self) -> bool:
        return self.scheme == "adaptive"


class BacksolveSpec(Part):
    """u re-integrated backwards beside λ; constant memory; detects its own failure and fails the job."""

    implementation: ClassVar[str] = "amaml.adjoint.backsolve:Backsolve"
    controls_lambda: ClassVar[bool] = True
    kind: Literal["backsolve"] = "backsolve"
    max_evaluations: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000


AdjointSpec = Annotated[DiscreteSpec | InterpolatedSpec | BacksolveSpec, Field(discriminator="kind")]
