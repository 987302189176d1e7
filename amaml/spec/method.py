"""The methods that a job names by one word, each beside its gradient in `amaml/methods`. Imports no torch."""

from __future__ import annotations

from amaml.adjoint.spec import AdjointSpec, BacksolveSpec, DiscreteSpec, InterpolatedSpec
from amaml.methods.amaml.spec import AmamlSpec
from amaml.methods.comln.spec import ComlnSpec
from amaml.methods.fomaml.spec import FomamlSpec
from amaml.methods.imaml.spec import ImamlSpec
from amaml.methods.maml.spec import Maml1Spec, MamlSpec
from amaml.methods.random.spec import RandomSpec
from amaml.methods.reptile.spec import ReptileSpec
from amaml.methods.spec import Learnable, MethodSpec

__all__ = [
    "METHODS",
    "AdjointSpec",
    "AmamlSpec",
    "AnyMethod",
    "BacksolveSpec",
    "ComlnSpec",
    "DiscreteSpec",
    "FomamlSpec",
    "ImamlSpec",
    "InterpolatedSpec",
    "Learnable",
    "Maml1Spec",
    "MamlSpec",
    "MethodSpec",
    "RandomSpec",
    "ReptileSpec",
]

AnyMethod = AmamlSpec | ComlnSpec | MamlSpec | Maml1Spec | FomamlSpec | ReptileSpec | ImamlSpec | RandomSpec
METHODS: tuple[type[AnyMethod], ...] = (
    AmamlSpec, ComlnSpec, MamlSpec, Maml1Spec, FomamlSpec, ReptileSpec, ImamlSpec, RandomSpec,
)  # fmt: skip
