"""The estimated cost of few-shot classification of the digits; the size of uploaded images isn't in a spec. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from amaml.families.cost import TRACED, FamilyCost
from amaml.families.spec import uploaded_dataset

if TYPE_CHECKING:
    from amaml.families.images.spec import ImagesSpec

_DIGITS: Final = (1, 8, 8)
"""The (channels, height, width) of the digits."""


def cost_of(spec: ImagesSpec) -> FamilyCost | None:
    if uploaded_dataset(spec.dataset) is not None:
        return None
    return FamilyCost(
        inputs=math.prod(_DIGITS),
        outputs=spec.ways,
        support_points=spec.shots * spec.ways,
        query_points=spec.queries * spec.ways,
        picture=_DIGITS,
        call_seconds=TRACED,
    )
