"""The spec of collaborative filtering. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from amaml.families.cost import FamilyCost
from amaml.families.ratings.cost import cost_of
from amaml.families.request_rows import Columns, RowError, shown
from amaml.families.spec import NOISY, SELECTED, FamilySpec, InPreset, Shots, TaskCount, TestTasks


class RatingsSpec(FamilySpec):
    implementation: ClassVar[str] = "amaml.families.ratings.family:build"
    reader: ClassVar[str | None] = "amaml.families.ratings.reader"
    summary: ClassVar[str] = (
        "Collaborative filtering: each user a task, items one-hot; MovieLens and Jester files as published."
    )
    in_preset: ClassVar[InPreset] = {
        "default": {**NOISY, **SELECTED},
        "paper": {
            "trajectory": {"length": 0.5},
            "solver": {"step": 0.01},
            "meta": {"iterations": 3_000, "optimizer": {"lr": 1e-3}},
        },
    }
    kind: Literal["ratings"] = "ratings"
    dataset: UUID = Field(strict=False)
    """The id of an uploaded data set."""
    items: Annotated[int, Field(ge=2, le=2_000)] = 100
    """The number of most-rated items that are kept; each is one input feature."""
    shots: Shots = 10
    queries: Shots = 15
    train_tasks: TaskCount | None = None
    """Null takes every user with enough ratings that is neither a test nor a validation user."""
    test_tasks: TestTasks = 100

    def cost(self) -> FamilyCost | None:
        return cost_of(self)

    @classmethod
    def check_rows(cls, rows: list[Any], columns: Columns) -> Iterator[RowError]:
        """Also accepts ids of items instead of one-hot rows."""
        if not isinstance(rows[0], str):
            yield from super().check_rows(rows, columns)
            return
        known = set(columns.names)
        for index, name in enumerate(rows):
            if not isinstance(name, str) or name not in known:
                yield RowError(
                    f"/{index}",
                    f"{shown(name)} is none of the {len(known)} items that the network knows: they are `inputs` in the "
                    "initialization's metadata, ids of the data set as text",
                )
