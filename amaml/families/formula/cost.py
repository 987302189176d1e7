"""The estimated cost of a family of functions. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from amaml.families.cost import FamilyCost

if TYPE_CHECKING:
    from amaml.families.formula.spec import SyntheticFamilySpec

POOL: Final = 1000
"""The number of support points and of query points in a training task's pools, unless the spec's shots or queries need more."""


def cost_of(spec: SyntheticFamilySpec) -> FamilyCost:
    dim: int = getattr(spec, "dim", 1)
    return FamilyCost(
        inputs=dim,
        outputs=1,
        support_points=spec.shots,
        query_points=POOL if spec.queries == "all" else spec.queries,
        numbers_held=2 * POOL * dim * (getattr(spec, "train_tasks", None) or 0),
    )
