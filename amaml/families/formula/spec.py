"""The families whose tasks are functions drawn from a formula: alpine, cosmixture and sinusoid. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from amaml.families.cost import FamilyCost
from amaml.families.formula.cost import cost_of
from amaml.families.spec import SELECTED, FamilySpec, InPreset, Shots, TaskCount, TestTasks
from amaml.spec.part import RuleBroken

_WHOLE_POOL: Final[InPreset] = {"default": {**SELECTED, "family": {"queries": "all"}}}


class SyntheticFamilySpec(FamilySpec):
    """Fields shared by families whose tasks are drawn from a formula."""

    in_preset: ClassVar[InPreset] = {"default": SELECTED}
    shots: Shots = 100
    """The number of support points of a task, on which the inner flow trains."""
    queries: Shots | Literal["all"] = 100
    """The number of query points of a task, which judge the adapted network during meta-training; all: a training task's whole
    pool."""
    test_tasks: TestTasks = 100
    """The number of unseen tasks for evaluation."""

    @model_validator(mode="after")
    def _a_pool_to_take_all_of(self) -> Self:
        if self.queries == "all" and getattr(self, "train_tasks", None) is None:
            raise RuleBroken(
                "queries all takes the whole pool of a training task, and tasks that are drawn afresh every time (train_tasks "
                "null) have none: name a number",
                "queries",
            )
        return self

    def cost(self) -> FamilyCost | None:
        return cost_of(self)


class CosMixtureSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.formula.family:build"
    summary: ClassVar[str] = (
        "y = −c Σ cos(ωπx_i + φ) − Σ x_i², c∈[.1,1], φ∈[.5,2], ω∈[3,6], x∈[−1,1]^d (the paper's first)."
    )
    in_preset: ClassVar[InPreset] = _WHOLE_POOL
    kind: Literal["cosmixture"] = "cosmixture"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class AlpineSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.formula.family:build"
    summary: ClassVar[str] = (
        "y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10|, k_i∈[−5,5], x∈[−10,10]^d (the paper's second)."
    )
    in_preset: ClassVar[InPreset] = _WHOLE_POOL
    kind: Literal["alpine"] = "alpine"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class SinusoidSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.formula.family:build"
    summary: ClassVar[str] = (
        "y = a sin(x − φ), a∈[.1,5], φ∈[0,π], x∈[−5,5] (Finn et al. 2017, the field's hello-world)."
    )
    kind: Literal["sinusoid"] = "sinusoid"
    shots: Shots = 10
    queries: Shots | Literal["all"] = 10
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time, as Finn et al. do."""
