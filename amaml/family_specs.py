"""The task families that a job names by `kind`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from amaml.parts import Part

Shots = Annotated[int, Field(ge=1, le=10_000)]
TaskCount = Annotated[int, Field(ge=1, le=1_000_000)]
TestTasks = Annotated[int, Field(ge=1, le=10_000)]


class FamilySpec(Part):
    """Base of every task family's spec. Subclasses fix `kind` and name their implementation."""

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, dtype=…, device=…, seed=…, datasets=…) in the trainer."""
    summary: ClassVar[str]
    kind: str


class SyntheticFamilySpec(FamilySpec):
    """Fields shared by families whose tasks are drawn from a formula."""

    shots: Shots = 100
    """Support points a task: what the inner flow trains on."""
    queries: Shots = 100
    """Query points a task: what judges the adapted network during meta-training."""
    test_tasks: TestTasks = 100
    """Unseen tasks set apart for evaluation."""


class CosMixtureSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.cosmixture:build"
    summary: ClassVar[str] = (
        "y = −c Σ cos(ωπx_i + φ) − Σ x_i², c∈[.1,1], φ∈[.5,2], ω∈[3,6], x∈[−1,1]^d (the paper's first)."
    )
    kind: Literal["cosmixture"] = "cosmixture"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class AlpineSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.alpine:build"
    summary: ClassVar[str] = (
        "y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10|, k_i∈[−5,5], x∈[−10,10]^d (the paper's second)."
    )
    kind: Literal["alpine"] = "alpine"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class SinusoidSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.sinusoid:build"
    summary: ClassVar[str] = (
        "y = a sin(x − φ), a∈[.1,5], φ∈[0,π], x∈[−5,5] (Finn et al. 2017, the field's hello-world)."
    )
    kind: Literal["sinusoid"] = "sinusoid"
    shots: Shots = 10
    queries: Shots = 10
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time, as Finn et al. do."""


class RatingsSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.ratings:build"
    summary: ClassVar[str] = (
        "Collaborative filtering: each user a task, items one-hot; MovieLens and Jester files as published."
    )
    kind: Literal["ratings"] = "ratings"
    dataset: UUID = Field(strict=False)
    """Id of an uploaded data set."""
    items: Annotated[int, Field(ge=2, le=2_000)] = 100
    """How many of the most-rated items are kept; each is one input feature."""
    shots: Shots = 10
    queries: Shots = 15
    train_tasks: TaskCount | None = None
    """Null takes every user with enough ratings that is neither a test nor a validation user."""
    test_tasks: TestTasks = 100
