"""The base class of every task family's spec, which is also the protocol of a family without torch."""

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
"""By a preset's name, what differs for this family: parts of a spec, and `updates`."""

SELECTED: Final = {"evaluation": {"select": "validation"}}
"""The preset's difference for families that always have validation tasks."""
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
"""The preset's difference for few tasks with noisy rows: a long trajectory overfits a task's noise, and long training with
learned rates overfits the tasks."""


def uploaded_dataset(dataset: UUID | str | None) -> UUID | None:
    """The id of the uploaded data set that a family's field `dataset` names; None where it names none, or one that is part of the
    family and has a name instead of an id."""
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
    """For a family with losses or a metric of its own: `module:function`, called as function(spec), returns its Objective."""
    reader: ClassVar[str | None] = None
    """For a family that reads uploaded data sets: a module, or `module:object`, with the interface
    amaml.families.reader.Reader. The API and the process that checks data sets import it, so it must not import torch."""
    summary: ClassVar[str]
    gives_pictures: ClassVar[bool] = False
    """Whether inputs are pictures, which models such as conv4 need."""
    differentiates_inputs: ClassVar[bool] = False
    """Whether losses contain second derivatives of the network with respect to its inputs, for which it must be smooth."""
    in_preset: ClassVar[InPreset] = {}
    kind: str

    def cost(self) -> FamilyCost | None:
        """The family's contribution to the estimated cost; None where it can't be derived from the spec, and the estimate is
        null."""
        return None

    def without_validation(self) -> tuple[str, str] | None:
        """The field because of which there are no validation tasks, and a sentence about it; None where there are some."""
        return None

    @classmethod
    def check_rows(cls, rows: list[Any], columns: Columns) -> Iterator[RowError]:
        """The errors in the inputs x of an adaptation's request, for a network with these input columns. Where a family accepts
        names of columns instead of rows of numbers, they stand for one-hot rows."""
        if isinstance(rows[0], str):
            yield RowError("/0", f"{shown(rows[0])} is text: give rows of {columns.width} numbers")
        else:
            yield from row_errors(rows, columns)
