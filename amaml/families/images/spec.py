"""The spec of few-shot classification of images. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from amaml.families.cost import FamilyCost
from amaml.families.images.cost import cost_of
from amaml.families.spec import NOISY, FamilySpec, InPreset, TestTasks, uploaded_dataset
from amaml.spec.part import RuleBroken

DIGITS: Final = "digits"
"""The data set that is part of the family."""


def _digits_or_id(dataset: str) -> str:
    found = uploaded_dataset(dataset)
    if found is None and dataset != DIGITS:
        raise ValueError(f"{dataset!r} names no data set: give {DIGITS}, or the id of an uploaded one")
    return dataset if found is None else str(found)


class ImagesSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.images.family:build"
    reader: ClassVar[str | None] = "amaml.families.images.reader"
    summary: ClassVar[str] = (
        "Few-shot classification of labelled images: a task is to tell some classes apart; handwritten digits come with it."
    )
    gives_pictures: ClassVar[bool] = True
    in_preset: ClassVar[InPreset] = {"default": {**NOISY, "updates": 450}}
    kind: Literal["images"] = "images"
    dataset: Annotated[str, Field(max_length=36), AfterValidator(_digits_or_id)]
    """`digits` (1797 handwritten digits, 8 × 8, of scikit-learn), or the id of an uploaded data set."""
    ways: Annotated[int, Field(ge=2, le=100)] = 3
    """The number of classes of a task."""
    shots: Annotated[int, Field(ge=1, le=1_000)] = 5
    """The number of images of each class in the support set."""
    queries: Annotated[int, Field(ge=1, le=1_000)] = 10
    """The number of images of each class in the query set; classes with fewer than shots + queries images are left out."""
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

    def cost(self) -> FamilyCost | None:
        return cost_of(self)

    def without_validation(self) -> tuple[str, str] | None:
        if self.validation_classes != 0:
            return None
        return "validation_classes", "validation_classes is 0: set it to null or to at least ways"
