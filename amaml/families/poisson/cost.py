"""The estimated cost of the Poisson family, whose residual differentiates the network twice along each coordinate. Imports no
torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from amaml.families.cost import FamilyCost
from amaml.families.formula.cost import cost_of as cost_of_formula

if TYPE_CHECKING:
    from amaml.families.poisson.spec import PoissonSpec

# By the number of coordinates.
_PASSES: Final = {1: 6.0, 2: 13.0}
_CALL_SECONDS: Final = {1: (3e-3, 6e-3), 2: (5e-3, 11e-3)}


def cost_of(spec: PoissonSpec) -> FamilyCost:
    boundary = 2 if spec.dim == 1 else 4 * spec.boundary
    return replace(
        cost_of_formula(spec),
        support_points=spec.shots + boundary,
        passes=_PASSES[spec.dim],
        call_seconds=_CALL_SECONDS[spec.dim],
    )
