"""The task families that a job names by `kind`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from amaml.spec.part import Part, RuleBroken

Shots = Annotated[int, Field(ge=1, le=10_000)]
TaskCount = Annotated[int, Field(ge=1, le=1_000_000)]
TestTasks = Annotated[int, Field(ge=1, le=10_000)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=0.9)]

InPreset = Mapping[str, Mapping[str, Any]]
"""By a preset's name, what it says otherwise for this family than for others: parts of a spec, and `updates`."""

POOL: Final = 1000
"""Support points and query points that a training task of a synthetic family owns, where tasks are of a fixed number; more if
more are asked for."""
BUILT_IN_DATASETS: Final = ("digits",)
"""Data sets that come with a family, which a spec names instead of an uploaded one's id."""


def uploaded_dataset(dataset: UUID | str | None) -> UUID | None:
    """The id of the uploaded data set that a family's `dataset` names; None where it names none, or one that comes with the
    family."""
    if dataset is None or dataset in BUILT_IN_DATASETS:
        return None
    return dataset if isinstance(dataset, UUID) else UUID(dataset)


def _built_in_or_id(dataset: str) -> str:
    try:
        found = uploaded_dataset(dataset)
    except ValueError as error:
        raise ValueError(
            f"{dataset!r} names no data set: give {' or '.join(BUILT_IN_DATASETS)}, or the id of an uploaded one"
        ) from error
    return dataset if found is None else str(found)


class FamilySpec(Part):
    """Base of every task family's spec. Subclasses fix `kind` and name their implementation."""

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, dtype=…, device=…, seed=…, datasets=…) in the trainer."""
    objective: ClassVar[str | None] = None
    """Of a family with losses or a metric of its own: `module:function`, called as function(spec), gives its Objective."""
    summary: ClassVar[str]
    gives_pictures: ClassVar[bool] = False
    """Inputs are pictures, so that models which read pictures fit."""
    differentiates_inputs: ClassVar[bool] = False
    """Losses hold second derivatives of the network in its inputs, so that only smooth networks fit."""
    in_preset: ClassVar[InPreset] = {}
    kind: str


_SELECTED: Final = {"evaluation": {"select": "validation"}}
_WHOLE_POOL: Final[InPreset] = {"default": {**_SELECTED, "family": {"queries": "all"}}}
_NOISY: Final = {
    "trajectory": {"length": 0.5},
    "phases": [
        {
            "method": {"kind": "amaml"},
            "share": 1.0,
            "optimizer": {"lr": 3e-3, "schedule": "cosine"},
            "clip": {"per": "task", "at": "median"},
        }
    ],
    "updates": 3_000,
}
"""Few tasks with noisy rows: a long trajectory learns a task's noise by heart, and long training with learned rates the tasks."""


class SyntheticFamilySpec(FamilySpec):
    """Fields shared by families whose tasks are drawn from a formula."""

    in_preset: ClassVar[InPreset] = {"default": _SELECTED}
    shots: Shots = 100
    """Support points a task: what the inner flow trains on."""
    queries: Shots | Literal["all"] = 100
    """Query points a task: what judges the adapted network during meta-training; all: every one of a training task's pool."""
    test_tasks: TestTasks = 100
    """Unseen tasks set apart for evaluation."""

    @model_validator(mode="after")
    def _a_pool_to_take_all_of(self) -> Self:
        if self.queries == "all" and getattr(self, "train_tasks", None) is None:
            raise RuleBroken(
                "queries all takes the whole pool of a training task, and tasks that are drawn afresh every time (train_tasks "
                "null) have none: name a number",
                "queries",
            )
        return self


class CosMixtureSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.cosmixture:build"
    summary: ClassVar[str] = (
        "y = −c Σ cos(ωπx_i + φ) − Σ x_i², c∈[.1,1], φ∈[.5,2], ω∈[3,6], x∈[−1,1]^d (the paper's first)."
    )
    in_preset: ClassVar[InPreset] = _WHOLE_POOL
    kind: Literal["cosmixture"] = "cosmixture"
    dim: Annotated[int, Field(ge=1, le=10)] = 2
    train_tasks: TaskCount = 100


class AlpineSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.alpine:build"
    summary: ClassVar[str] = (
        "y = Σ |x_i sin(x_i + π + k_iπ/12) + x_i/10|, k_i∈[−5,5], x∈[−10,10]^d (the paper's second)."
    )
    in_preset: ClassVar[InPreset] = _WHOLE_POOL
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
    queries: Shots | Literal["all"] = 10
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time, as Finn et al. do."""


class RatingsSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.ratings:build"
    summary: ClassVar[str] = (
        "Collaborative filtering: each user a task, items one-hot; MovieLens and Jester files as published."
    )
    in_preset: ClassVar[InPreset] = {
        "default": {**_NOISY, **_SELECTED},
        "paper": {
            "trajectory": {"length": 0.5},
            "solver": {"step": 0.01},
            "meta": {"iterations": 3_000, "optimizer": {"lr": 1e-3}},
        },
    }
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


class TableSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.table:build"
    summary: ClassVar[str] = (
        "A table of your own (CSV or Parquet): columns say the task, the inputs and the targets; regression or classification."
    )
    in_preset: ClassVar[InPreset] = {"default": _NOISY}
    kind: Literal["table"] = "table"
    dataset: UUID = Field(strict=False)
    """Id of an uploaded data set."""
    task: ColumnName
    """Column whose value says which task a row belongs to."""
    inputs: Annotated[list[ColumnName], Field(min_length=1, max_length=500)]
    """Columns that the network sees: numbers and booleans as they are, text one-hot."""
    targets: Annotated[list[ColumnName], Field(min_length=1, max_length=100)]
    """Columns that it predicts: numbers are regressed, one column of text or booleans is classified."""
    classify: bool | None = None
    """Null goes by the target's type; true takes whole numbers for classes too."""
    split: ColumnName | None = None
    """Column that says train, validation or test, the same in all of a task's rows; null goes by a hash of the task's value."""
    validation_share: Share = 0.1
    """Of the tasks, roughly, where the hash decides."""
    test_share: Annotated[float, Field(gt=0, le=0.9)] = 0.2
    shots: Shots = 10
    """Rows that a task is learnt from; tasks with fewer than shots + 1 rows are left out."""
    queries: Shots = 15
    """Rows that judge it."""

    @model_validator(mode="after")
    def _columns_that_make_sense(self) -> Self:
        for field in ("inputs", "targets"):
            names = getattr(self, field)
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise RuleBroken(f"column {doubled[0]!r} is named twice: name it once", field)
        roles = [("task", [self.task]), ("inputs", self.inputs), ("targets", self.targets)]
        roles.append(("split", [] if self.split is None else [self.split]))
        for index, (field, names) in enumerate(roles):
            for other, others in roles[:index]:
                for name in names:
                    if name in others:
                        raise RuleBroken(f"column {name!r} is among {other} already: a column has one role", field)
        if self.classify and len(self.targets) > 1:
            raise RuleBroken(
                f"one column is classified, not {len(self.targets)}: name one, or set classify to null", "targets"
            )
        if self.split is None and self.validation_share + self.test_share > 0.9:
            raise RuleBroken(
                f"validation_share {self.validation_share:g} and test_share {self.test_share:g} leave less than a tenth to train "
                "on: lower one of them",
                "test_share",
            )
        return self


class ImagesSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.images:build"
    summary: ClassVar[str] = (
        "Few-shot classification of labelled images: a task is to tell some classes apart; handwritten digits come with it."
    )
    gives_pictures: ClassVar[bool] = True
    in_preset: ClassVar[InPreset] = {"default": {**_NOISY, "updates": 450}}
    kind: Literal["images"] = "images"
    dataset: Annotated[str, Field(max_length=36), AfterValidator(_built_in_or_id)]
    """`digits` (1797 handwritten digits, 8 × 8, of scikit-learn), or the id of an uploaded data set."""
    ways: Annotated[int, Field(ge=2, le=100)] = 3
    """Classes of a task."""
    shots: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Images of each class that a task is learnt from."""
    queries: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Images of each class that judge it; a class with fewer than shots + queries is left out."""
    validation_classes: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Null sets a fifth of the classes apart, at least `ways`; none where there are too few for that."""
    test_classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Null sets a fifth of the classes apart, at least `ways`."""
    test_tasks: TestTasks = 100

    @model_validator(mode="after")
    def _enough_classes_for_a_task(self) -> Self:
        for field in ("validation_classes", "test_classes"):
            classes = getattr(self, field)
            if classes and classes < self.ways:
                raise RuleBroken(f"{classes} classes make no task of {self.ways} ways: raise it or lower ways", field)
        return self


class PoissonSpec(SyntheticFamilySpec):
    implementation: ClassVar[str] = "amaml.families.poisson:build"
    objective: ClassVar[str | None] = "amaml.families.poisson:objective"
    summary: ClassVar[str] = (
        "Physics-informed: −Δu = f on (0,1) or (0,1)², random forcing and boundary values; the loss is the equation's residual."
    )
    differentiates_inputs: ClassVar[bool] = True
    in_preset: ClassVar[InPreset] = {"default": {**_SELECTED, "updates": 130}}
    kind: Literal["poisson"] = "poisson"
    dim: Annotated[int, Field(ge=1, le=2)] = 1
    modes: Annotated[int, Field(ge=1, le=8)] = 3
    """Sines a coordinate that forcing (and, on the square, boundary values) are made of."""
    shots: Shots = 32
    """Points within the domain at which the equation is asked to hold."""
    boundary: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Points on each side of the square; an interval has its two ends."""
    boundary_weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Of the mean squared error on the boundary, beside the mean squared residual within; both in standard deviations."""
    queries: Shots = 32
    """Points that judge the adapted network during meta-training."""
    judged_by: Literal["solution", "residual"] = "solution"
    """What the query loss is: error against the exact solution, or the residual again, which needs no solution."""
    train_tasks: TaskCount | None = None
    """Null draws a fresh task every time."""
