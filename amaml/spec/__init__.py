"""What a run is: the job spec, shared by HTTP, worker, trainer and library. Imports no torch.

Every bound stands in the JSON Schema; rules between fields are validators whose sentence names the remedy.
"""

from __future__ import annotations

from amaml.spec.evaluation import EvaluationSpec
from amaml.spec.families import (
    AlpineSpec,
    CosMixtureSpec,
    FamilySpec,
    ImagesSpec,
    PoissonSpec,
    RatingsSpec,
    SinusoidSpec,
    SyntheticFamilySpec,
    TableSpec,
)
from amaml.spec.meta import ClipSpec, InitFrom, MetaSpec, OptimizerSpec, PhaseSpec
from amaml.spec.methods import (
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
from amaml.spec.models import Conv4Spec, MLPSpec, ModelSpec
from amaml.spec.part import Part, RuleBroken
from amaml.spec.runtime import RuntimeSpec
from amaml.spec.solvers import SolverSpec, solvers
from amaml.spec.trajectory import Horizon, TrajectorySpec

# isort: split
# Last, for they load the packages that offer families and models, which subclass what is imported above.
from amaml.spec.job import JobSpec
from amaml.spec.kinds import families, methods, models

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
