"""What every task family's spec is, and what a family says of itself without torch: the base of each family's `spec.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

from pydantic import Field

from amaml.families.cost import FamilyCost
from amaml.families.request_rows import Columns, RowError, row_errors, shown
from amaml.spec.part import Part

Shots = Annotated[int, Field(ge=1, le=10_000)]
TaskCount = Annotated[int, Field(ge=1, le=1_000_000)]
TestTasks = Annotated[int, Field(ge=1, le=10_000)]

InPreset = Mapping[str, Mapping[str, Any]]
"""By a preset's name, what it says otherwise for this family than for others: parts of a spec, and `updates`."""

SELECTED: Final = {"evaluation": {"select": "validation"}}
"""What a preset says of families that have validation tasks for certain."""
NOISY: Final = {
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


def uploaded_dataset(dataset: UUID | str | None) -> UUID | None:
    """The id of the uploaded data set that a family's field `dataset` names; None where it names none, or one that comes with the
    family, which has a name that is no id."""
    try:
        return dataset if isinstance(dataset, UUID) else UUID(dataset)
    except (TypeError, ValueError):
        return None


class FamilySpec(Part):
    """Base of every task family's spec, and the protocol of a family: a subclass fixes `kind`, `summary` and `implementation`.
    Whatever else has a default here, which is right for a family that reads no data set.

    A family is a folder: `spec.py` (the subclass, without torch), `family.py` (its tasks, with torch), `cost.py` (what `cost`
    answers), and `reader.py` where it reads data sets. A field by which a spec names a data set is called `dataset`.
    """

    implementation: ClassVar[str]
    """`module:function`; called as function(spec, dtype=…, device=…, seed=…, datasets=…) in the trainer, gives a Family
    (amaml.families.base). Nothing else imports the module, so it may import torch."""
    objective: ClassVar[str | None] = None
    """Of a family with losses or a metric of its own: `module:function`, called as function(spec), gives its Objective."""
    reader: ClassVar[str | None] = None
    """Of a family that reads uploaded data sets: a module, or `module:object`, with what amaml.families.reader.Reader says. It
    is imported by the API and by the process that checks data sets, so it imports no torch."""
    summary: ClassVar[str]
    gives_pictures: ClassVar[bool] = False
    """Inputs are pictures, so that models which read pictures fit."""
    differentiates_inputs: ClassVar[bool] = False
    """Losses hold second derivatives of the network in its inputs, so that only smooth networks fit."""
    in_preset: ClassVar[InPreset] = {}
    kind: str

    def cost(self) -> FamilyCost | None:
        """What a run with it takes, for the estimate; None where the spec alone doesn't tell, and the estimate says null."""
        return None

    def without_validation(self) -> tuple[str, str] | None:
        """The field that leaves no task for validation, and what is said of it; None where there are some."""
        return None

    @classmethod
    def check_rows(cls, rows: list[Any], columns: Columns) -> Iterator[RowError]:
        """What is wrong with the inputs x that an adaptation was sent, for a network with those input columns. Names of columns,
        where a family accepts them instead of rows of numbers, stand for one-hot rows."""
        if isinstance(rows[0], str):
            yield RowError("/0", f"{shown(rows[0])} is text: give rows of {columns.width} numbers")
        else:
            yield from row_errors(rows, columns)
