"""What a run is: the job spec, shared by HTTP, worker, trainer and library. Imports no torch.

Every bound stands in the JSON Schema; rules between fields are validators whose sentence names the remedy.

Names are imported when they are first asked for: `JobSpec` knows every family and model of this machine, so its module loads the
packages that offer some, which import base classes from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from amaml.families.formula.spec import AlpineSpec, CosMixtureSpec, SinusoidSpec, SyntheticFamilySpec
    from amaml.families.images.spec import ImagesSpec
    from amaml.families.poisson.spec import PoissonSpec
    from amaml.families.ratings.spec import RatingsSpec
    from amaml.families.spec import FamilySpec
    from amaml.families.table.spec import TableSpec
    from amaml.models.conv4.spec import Conv4Spec
    from amaml.models.mlp.spec import MLPSpec
    from amaml.models.spec import ModelSpec
    from amaml.spec.evaluation import EvaluationSpec
    from amaml.spec.job import JobSpec
    from amaml.spec.kinds import families, methods, models
    from amaml.spec.meta import ClipSpec, InitFrom, MetaSpec, OptimizerSpec, PhaseSpec
    from amaml.spec.method import (
        AdjointSpec,
        AmamlSpec,
        AnyMethod,
        BacksolveSpec,
        ComlnSpec,
        DiscreteSpec,
        FomamlSpec,
        ImamlSpec,
        InterpolatedSpec,
        Maml1Spec,
        MamlSpec,
        MethodSpec,
        RandomSpec,
        ReptileSpec,
    )
    from amaml.spec.part import Part, RuleBroken
    from amaml.spec.runtime import RuntimeSpec
    from amaml.spec.solver import SolverSpec, solvers
    from amaml.spec.trajectory import Horizon, TrajectorySpec

_HOME: Final = {
    "amaml.families.formula.spec": ("AlpineSpec", "CosMixtureSpec", "SinusoidSpec", "SyntheticFamilySpec"),
    "amaml.families.images.spec": ("ImagesSpec",),
    "amaml.families.poisson.spec": ("PoissonSpec",),
    "amaml.families.ratings.spec": ("RatingsSpec",),
    "amaml.families.spec": ("FamilySpec",),
    "amaml.families.table.spec": ("TableSpec",),
    "amaml.models.conv4.spec": ("Conv4Spec",),
    "amaml.models.mlp.spec": ("MLPSpec",),
    "amaml.models.spec": ("ModelSpec",),
    "amaml.spec.evaluation": ("EvaluationSpec",),
    "amaml.spec.job": ("JobSpec",),
    "amaml.spec.kinds": ("families", "methods", "models"),
    "amaml.spec.meta": ("ClipSpec", "InitFrom", "MetaSpec", "OptimizerSpec", "PhaseSpec"),
    "amaml.spec.method": (
        "AdjointSpec", "AmamlSpec", "AnyMethod", "BacksolveSpec", "ComlnSpec", "DiscreteSpec", "FomamlSpec", "ImamlSpec",
        "InterpolatedSpec", "Maml1Spec", "MamlSpec", "MethodSpec", "RandomSpec", "ReptileSpec",
    ),
    "amaml.spec.part": ("Part", "RuleBroken"),
    "amaml.spec.runtime": ("RuntimeSpec",),
    "amaml.spec.solver": ("SolverSpec", "solvers"),
    "amaml.spec.trajectory": ("Horizon", "TrajectorySpec"),
}  # fmt: skip
"""The names that are offered, each with its module. No module of this package may have one of these names, since it would hide
it."""

_MODULE_OF: Final = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AdjointSpec",
    "AlpineSpec",
    "AmamlSpec",
    "AnyMethod",
    "BacksolveSpec",
    "ClipSpec",
    "ComlnSpec",
    "Conv4Spec",
    "CosMixtureSpec",
    "DiscreteSpec",
    "EvaluationSpec",
    "FamilySpec",
    "FomamlSpec",
    "Horizon",
    "ImagesSpec",
    "ImamlSpec",
    "InitFrom",
    "InterpolatedSpec",
    "JobSpec",
    "MLPSpec",
    "Maml1Spec",
    "MamlSpec",
    "MetaSpec",
    "MethodSpec",
    "ModelSpec",
    "OptimizerSpec",
    "Part",
    "PhaseSpec",
    "PoissonSpec",
    "RandomSpec",
    "RatingsSpec",
    "ReptileSpec",
    "RuleBroken",
    "RuntimeSpec",
    "SinusoidSpec",
    "SolverSpec",
    "SyntheticFamilySpec",
    "TableSpec",
    "TrajectorySpec",
    "families",
    "methods",
    "models",
    "solvers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'amaml.spec' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
