"""The estimated cost of collaborative filtering. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amaml.families.cost import FamilyCost

if TYPE_CHECKING:
    from amaml.families.ratings.spec import RatingsSpec


def cost_of(spec: RatingsSpec) -> FamilyCost:
    return FamilyCost(inputs=spec.items, outputs=1, support_points=spec.shots, query_points=spec.queries)
