"""What springs cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amaml.families.cost import FamilyCost

if TYPE_CHECKING:
    from springs.spec import SpringsSpec


def cost_of(spec: SpringsSpec) -> FamilyCost:
    return FamilyCost(inputs=1, outputs=1, support_points=spec.shots, query_points=spec.shots)
