"""The families, models and methods that there are on this machine, by their `kind`. Imports no torch.

Operators add families and models as entry points (groups `amaml.families`, `amaml.models`), each naming a subclass of
`FamilySpec` or `ModelSpec`; its `implementation` is imported by the trainer alone.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from amaml.spec.families import (
    AlpineSpec,
    CosMixtureSpec,
    FamilySpec,
    ImagesSpec,
    PoissonSpec,
    RatingsSpec,
    SinusoidSpec,
    TableSpec,
)
from amaml.spec.methods import METHODS, AnyMethod
from amaml.spec.models import Conv4Spec, MLPSpec, ModelSpec
from amaml.spec.part import Part


def _with_entry_points(group: str, base: type[Part], builtin: tuple[type[Any], ...]) -> tuple[type[Any], ...]:
    """Built-in spec classes and those that installed packages offer, by their `kind`; a doubled kind is an error."""
    classes = list(builtin)
    for point in entry_points(group=group):
        cls = point.load()
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise TypeError(
                f"entry point {point.name!r} of {group} names {cls!r}, which is no subclass of {base.__name__}"
            )
        classes.append(cls)
    kinds = [_kind(cls) for cls in classes]
    doubled = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if doubled:
        raise ValueError(f"{group}: kind {', '.join(doubled)} is offered twice; uninstall one of the packages")
    return tuple(classes)


def _kind(cls: type[Part]) -> str:
    return str(cls.model_fields["kind"].default)


_FAMILIES = _with_entry_points(
    "amaml.families",
    FamilySpec,
    (CosMixtureSpec, AlpineSpec, SinusoidSpec, RatingsSpec, TableSpec, ImagesSpec, PoissonSpec),
)
_MODELS = _with_entry_points("amaml.models", ModelSpec, (MLPSpec, Conv4Spec))

if TYPE_CHECKING:
    AnyFamily = FamilySpec
    AnyModel = ModelSpec
else:

    def _union(classes):
        return Annotated[Union[classes], Field(discriminator="kind")] if len(classes) > 1 else classes[0]  # noqa: UP007 - a tuple of classes

    AnyFamily, AnyModel = _union(_FAMILIES), _union(_MODELS)


def families() -> dict[str, type[FamilySpec]]:
    """Every task family on this machine by kind, built-in ones first."""
    return {_kind(cls): cls for cls in _FAMILIES}


def models() -> dict[str, type[ModelSpec]]:
    """Every architecture on this machine by kind, built-in ones first."""
    return {_kind(cls): cls for cls in _MODELS}


def methods() -> dict[str, type[AnyMethod]]:
    """Every meta-gradient estimator by kind."""
    return {_kind(cls): cls for cls in METHODS}
