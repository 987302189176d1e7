"""From a spec's part to the thing it names; `implementation` is imported here and nowhere else."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from amaml.adjoint.backsolve import Backsolve
from amaml.adjoint.discrete import Discrete
from amaml.adjoint.interpolated import Interpolated
from amaml.adjoint.protocol import Adjoint
from amaml.families.base import Family
from amaml.flow.solvers import RK4, Bosh3, Dopri5, Euler, Heun, Solver
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.methods.amaml import meta_gradient
from amaml.methods.estimate import Estimate
from amaml.methods.fomaml import fomaml
from amaml.methods.imaml import imaml
from amaml.methods.maml import maml
from amaml.methods.reptile import reptile
from amaml.objectives import BUILT_IN as OBJECTIVES
from amaml.objectives import Objective
from amaml.randomness import key
from amaml.spec import (
    AdjointSpec,
    AmamlSpec,
    AnyMethod,
    BacksolveSpec,
    ComlnSpec,
    DiscreteSpec,
    FamilySpec,
    FomamlSpec,
    ImamlSpec,
    InterpolatedSpec,
    Maml1Spec,
    MamlSpec,
    ModelSpec,
    RandomSpec,
    ReptileSpec,
    SolverSpec,
)

Estimator = Callable[..., Estimate]
"""(params, support_loss, query_loss, tasks, *, length, horizons, solver) → Estimate, of an exact one a MetaGradient; where the
flow is learned `rates`, `proximal` and `wrt` too."""

_FIXED = {"euler": Euler, "heun": Heun, "rk4": RK4}
_ADAPTIVE = {"bosh3": Bosh3, "dopri5": Dopri5}


def build_family(
    spec: FamilySpec, *, seed: int, dtype: torch.dtype, device: torch.device, datasets: Mapping[str, Path]
) -> Family:
    """The task family; raises DataError if the data sets can't serve it."""
    build = pkgutil.resolve_name(spec.implementation)
    return cast(Family, build(spec, dtype=dtype, device=device, seed=seed, datasets=datasets))


def objective_named(spec: FamilySpec, name: str) -> Objective:
    """The objective of a finished run of that family, by the name that its file has it under."""
    if spec.objective is not None:
        return cast(Objective, pkgutil.resolve_name(spec.objective)(spec))
    return OBJECTIVES[name]


def build_model(
    spec: ModelSpec, *, in_features: int, out_features: int, seed: int, picture: tuple[int, int, int] | None = None
) -> nn.Module:
    """The network on the CPU in float32, at a random start that is a function of the seed alone."""
    build = pkgutil.resolve_name(spec.implementation)
    if spec.reads_pictures:
        build = partial(build, picture=picture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "model"))
        return cast(nn.Module, build(spec, in_features=in_features, out_features=out_features))


def build_solver(spec: SolverSpec) -> Solver:
    """The solver; kinds that aren't our own are torchdiffeq's."""
    if spec.kind in _FIXED:
        assert spec.step is not None, "the spec fills in a fixed-step solver's step"
        return _FIXED[spec.kind](step=spec.step, guard=spec.guard)
    if spec.kind in _ADAPTIVE:
        return _ADAPTIVE[spec.kind](rtol=spec.rtol, atol=spec.atol, guard=spec.guard)
    return TorchDiffEq(spec.kind, rtol=spec.rtol, atol=spec.atol, step=spec.step, guard=spec.guard)


def build_adjoint(spec: AdjointSpec | None) -> Adjoint | None:
    """The adjoint; None leaves it to the solver."""
    match spec:
        case None:
            return None
        case DiscreteSpec():
            return Discrete(checkpoints=spec.checkpoints)
        case InterpolatedSpec():
            return Interpolated(scheme=spec.scheme, checkpoints=spec.checkpoints)
        case BacksolveSpec():
            return Backsolve(max_evaluations=spec.max_evaluations)


def build_estimator(spec: AnyMethod) -> Estimator | None:  # noqa: PLR0911 - a return a method
    """What estimates θ's meta-gradient; None for the method that trains nothing."""
    match spec:
        case AmamlSpec():
            return partial(
                meta_gradient,
                adjoint=build_adjoint(spec.adjoint),
                proximal=spec.proximal,
                proximal_in_query=spec.proximal_in_query,
            )
        case ComlnSpec():
            return partial(meta_gradient, adjoint=build_adjoint(spec.adjoint))
        case MamlSpec() | Maml1Spec():
            return partial(maml, steps=spec.steps)
        case FomamlSpec():
            return fomaml
        case ReptileSpec():
            return reptile
        case ImamlSpec():
            return partial(imaml, proximal=spec.proximal, cg_steps=spec.cg_steps, damping=spec.damping)
        case RandomSpec():
            return None
