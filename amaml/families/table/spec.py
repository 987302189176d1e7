"""The spec of a table of the user's own. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from amaml.families.cost import FamilyCost
from amaml.families.spec import NOISY, FamilySpec, InPreset, Shots
from amaml.families.table.cost import cost_of
from amaml.spec.part import RuleBroken

ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=0.9)]


class TableSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.table.family:build"
    reader: ClassVar[str | None] = "amaml.families.table.reader"
    summary: ClassVar[str] = (
        "A table of your own (CSV or Parquet): columns say the task, the inputs and the targets; regression or classification."
    )
    in_preset: ClassVar[InPreset] = {"default": NOISY}
    kind: Literal["table"] = "table"
    dataset: UUID = Field(strict=False)
    """The id of an uploaded data set."""
    task: ColumnName
    """The column whose value is the task that a row belongs to."""
    inputs: Annotated[list[ColumnName], Field(min_length=1, max_length=500)]
    """The columns that are the network's inputs: numbers and booleans as they are, text one-hot."""
    targets: Annotated[list[ColumnName], Field(min_length=1, max_length=100)]
    """The columns that it predicts: numbers are regressed, one column of text or booleans is classified."""
    classify: bool | None = None
    """null: decided by the target's type; true: whole numbers are classes, too."""
    split: ColumnName | None = None
    """The column that says train, validation or test, equal in all rows of a task; null: decided by a hash of the task's
    value."""
    validation_share: Share = 0.1
    """The approximate share of the tasks where the hash decides."""
    test_share: Annotated[float, Field(gt=0, le=0.9)] = 0.2
    shots: Shots = 10
    """The number of rows in the support set; tasks with fewer than shots + 1 rows are left out."""
    queries: Shots = 15
    """The number of rows in the query set."""

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

    def cost(self) -> FamilyCost | None:
        return cost_of(self)
