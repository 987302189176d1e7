"""The spec of Poisson's equation, physics-informed. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amaml.families.cost import FamilyCost
from amaml.families.formula.spec import SyntheticFamilySpec
from amaml.families.poisson.cost import cost_of
from amaml.families.spec import SELECTED, InPreset, Shots, TaskCount


class PoissonSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.poisson.family:build"
    objective: ClassVar[str | None] = "amaml.families.poisson.family:objective"
    summary: ClassVar[str] = (
        "Physics-informed: −Δu = f on (0,1) or (0,1)², random forcing and boundary values; the loss is the equation's residual."
    )
    differentiates_inputs: ClassVar[bool] = True
    in_preset: ClassVar[InPreset] = {"default": {**SELECTED, "updates": 130}}
    kind: Literal["poisson"] = "poisson"
    dim: Annotated[int, Field(ge=1, le=2)] = 1
    modes: Annotated[int, Field(ge=1, le=8)] = 3
    """The number of sines along each coordinate of which forcing (and, on the square, boundary values) are made."""
    shots: Shots = 32
    """The number of points within the domain at which the residual is evaluated."""
    boundary: Annotated[int, Field(ge=1, le=1_000)] = 8
    """The number of points on each side of the square; an interval has its two ends."""
    boundary_weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The weight of the mean squared error on the boundary, relative to the mean squared residual within; both in standard
    deviations."""
    queries: Shots = 32
    """The number of points that judge the adapted network during meta-training."""
    judged_by: Literal["solution", "residual"] = "solution"
    """The query loss: the error against the exact solution, or the residual again, which needs no solution."""
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time."""

    def cost(self) -> FamilyCost | None:
        return cost_of(self)
