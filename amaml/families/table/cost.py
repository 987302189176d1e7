"""The estimated cost of a table, as if all inputs were numbers and there were two classes. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amaml.families.cost import TRACED, WRITTEN_OUT, FamilyCost

if TYPE_CHECKING:
    from amaml.families.table.spec import TableSpec


def cost_of(spec: TableSpec) -> FamilyCost:
    return FamilyCost(
        inputs=len(spec.inputs),
        outputs=2 if spec.classify else len(spec.targets),
        support_points=spec.shots,
        query_points=spec.queries,
        call_seconds=TRACED if spec.classify else WRITTEN_OUT,
    )
