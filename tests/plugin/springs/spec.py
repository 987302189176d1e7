"""Springs that swing: what a job names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from amaml.families.cost import FamilyCost
from amaml.families.request_rows import Columns, RowError, row_errors
from amaml.spec import FamilySpec
from springs.cost import cost_of


class SpringsSpec(FamilySpec):
    implementation: ClassVar[str] = "springs.family:build"
    objective: ClassVar[str | None] = "springs.family:objective"
    reader: ClassVar[str | None] = "springs.reader"
    summary: ClassVar[str] = "Positions of springs over time; each spring is a task."
    kind: Literal["springs"] = "springs"
    dataset: UUID = Field(strict=False)
    shots: Annotated[int, Field(ge=1, le=100)] = 5
    test_springs: Annotated[int, Field(ge=1, le=100)] = 5

    def cost(self) -> FamilyCost | None:
        return cost_of(self)

    @classmethod
    def check_rows(cls, rows: list[Any], columns: Columns) -> Iterator[RowError]:
        """A time before 0 is none that was measured."""
        wrong = list(row_errors(rows, columns))
        yield from wrong
        if not wrong:
            times = [row[0] if isinstance(row, list) else row for row in rows]
            yield from (RowError(f"/{i}", f"{time:g} is before 0") for i, time in enumerate(times) if time < 0)
