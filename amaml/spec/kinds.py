"""The families, models and methods that there are on this machine, by their `kind`. Imports no torch.

Operators add families and models as entry points (groups `amaml.families`, `amaml.models`), each naming a subclass of
`FamilySpec` or `ModelSpec`; see `amaml.spec.entry_points` for what is asked of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Union

from pydantic import Field

from amaml.families.formula.spec import AlpineSpec, CosMixtureSpec, SinusoidSpec
from amaml.families.images.spec import ImagesSpec
from amaml.families.poisson.spec import PoissonSpec
from amaml.families.ratings.spec import RatingsSpec
from amaml.families.spec import FamilySpec
from amaml.families.table.spec import TableSpec
from amaml.models.conv4.spec import Conv4Spec
from amaml.models.mlp.spec import MLPSpec
from amaml.models.spec import ModelSpec
from amaml.spec.entry_points import kind_of, with_entry_points
from amaml.spec.method import METHODS, AnyMethod

_FAMILIES = with_entry_points(
    "amaml.families",
    FamilySpec,
    (CosMixtureSpec, AlpineSpec, SinusoidSpec, RatingsSpec, TableSpec, ImagesSpec, PoissonSpec),
)
_MODELS = with_entry_points("amaml.models", ModelSpec, (MLPSpec, Conv4Spec))
DEFAULT_MODEL: Final[type[ModelSpec]] = MLPSpec
"""The model of a spec that names none, or that gives fields of a model without its kind."""

if TYPE_CHECKING:
    AnyFamily = FamilySpec
    AnyModel = ModelSpec
else:

    def _union(classes):
        return Annotated[Union[classes], Field(discriminator="kind")] if len(classes) > 1 else classes[0]  # noqa: UP007 - a tuple of classes

    AnyFamily, AnyModel = _union(_FAMILIES), _union(_MODELS)


def families() -> dict[str, type[FamilySpec]]:
    """Every task family on this machine by kind, built-in ones first."""
    return {kind_of(cls): cls for cls in _FAMILIES}


def models() -> dict[str, type[ModelSpec]]:
    """Every architecture on this machine by kind, built-in ones first."""
    return {kind_of(cls): cls for cls in _MODELS}


def methods() -> dict[str, type[AnyMethod]]:
    """Every meta-gradient estimator by kind."""
    return {kind_of(cls): cls for cls in METHODS}
