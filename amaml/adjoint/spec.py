"""The adjoints as a job names them. Imports no torch.

A spec's fields are the arguments of the class that it names.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.spec.part import Part


class DiscreteSpec(Part):
    """The exact reverse of the accepted forward steps."""

    implementation: ClassVar[str] = "amaml.adjoint.discrete:Discrete"
    controls_lambda: ClassVar[bool] = False
    kind: Literal["discrete"] = "discrete"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of states kept at any time (binomial schedule); null keeps about √N."""


class InterpolatedSpec(Part):
    """The paper's adjoint: the adjoint ODE, solved to tolerance with its own steps over the forward solve's dense output."""

    implementation: ClassVar[str] = "amaml.adjoint.interpolated:Interpolated"
    kind: Literal["interpolated"] = "interpolated"
    scheme: Literal["adaptive", "heun", "euler"] = "adaptive"
    checkpoints: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of states kept at any time, as for discrete, in addition to the dense output of 16 steps."""

    @property
    def controls_lambda(self) -> bool:
        return self.scheme == "adaptive"


class BacksolveSpec(Part):
    """u integrated backwards together with λ in constant memory. It detects its own failure, which fails the job."""

    implementation: ClassVar[str] = "amaml.adjoint.backsolve:Backsolve"
    controls_lambda: ClassVar[bool] = True
    kind: Literal["backsolve"] = "backsolve"
    max_evaluations: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000


AdjointSpec = Annotated[DiscreteSpec | InterpolatedSpec | BacksolveSpec, Field(discriminator="kind")]
