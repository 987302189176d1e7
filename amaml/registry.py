"""Builds the objects that the parts of a spec name. This is the only module that imports what `implementation` names."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from amaml.adjoint.protocol import Adjoint
from amaml.families.base import Family
from amaml.flow.solvers import RK4, Bosh3, Dopri5, Euler, Heun, Solver
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.methods.estimate import GradientEstimate
from amaml.objectives import BUILT_IN as OBJECTIVES
from amaml.objectives import Objective
from amaml.randomness import key
from amaml.spec import AdjointSpec, FamilySpec, MethodSpec, ModelSpec, SolverSpec

Estimator = Callable[..., GradientEstimate]
"""A function (params, support_loss, query_loss, tasks, *, length, horizons, solver) → GradientEstimate, or MetaGradient for an
exact method. Where the flow is learned, it also receives `rates`, `proximal` and `wrt`."""

_FIXED = {"euler": Euler, "heun": Heun, "rk4": RK4}
_ADAPTIVE = {"bosh3": Bosh3, "dopri5": Dopri5}


def build_family(
    spec: FamilySpec, *, seed: int, dtype: torch.dtype, device: torch.device, datasets: Mapping[str, Path]
) -> Family:
    """The spec's task family. Raises DataError for unsuitable data sets, TypeError if no name leads to its objective."""
    build = pkgutil.resolve_name(spec.implementation)
    family = cast(Family, build(spec, dtype=dtype, device=device, seed=seed, datasets=datasets))
    _check_objective(spec, family.objective.name)
    return family


def _check_objective(spec: FamilySpec, name: str) -> None:
    """Raises TypeError if the file of a finished run would name an objective that nothing can find again."""
    if spec.objective is None and name not in OBJECTIVES:
        raise TypeError(
            f"family {spec.kind} has an objective of its own, {name!r}, and its spec doesn't say where a finished run finds it: "
            f'write objective: ClassVar[str | None] = "module:function" in {type(spec).__name__}'
        )
    if (found := objective_named(spec, name).name) != name:
        raise TypeError(
            f"family {spec.kind} has the objective {name!r}, and {spec.objective} gives {found!r}: make them one"
        )


def objective_named(spec: FamilySpec, name: str) -> Objective:
    """The objective with this name, as the file of a finished run of the family gives it."""
    if spec.objective is not None:
        return cast(Objective, pkgutil.resolve_name(spec.objective)(spec))
    return OBJECTIVES[name]


def build_model(
    spec: ModelSpec, *, in_features: int, out_features: int, seed: int, picture: tuple[int, int, int] | None = None
) -> nn.Module:
    """The spec's network on the CPU in float32. Its random parameters depend on the seed alone."""
    build = pkgutil.resolve_name(spec.implementation)
    if spec.reads_pictures:
        build = partial(build, picture=picture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "model"))
        return cast(nn.Module, build(spec, in_features=in_features, out_features=out_features))


def build_solver(spec: SolverSpec) -> Solver:
    """The spec's solver: one of this library's, or torchdiffeq's solver of that name."""
    if spec.kind in _FIXED:
        assert spec.step is not None, "the spec fills in a fixed-step solver's step"
        return _FIXED[spec.kind](step=spec.step, guard=spec.guard)
    if spec.kind in _ADAPTIVE:
        return _ADAPTIVE[spec.kind](rtol=spec.rtol, atol=spec.atol, guard=spec.guard)
    return TorchDiffEq(spec.kind, rtol=spec.rtol, atol=spec.atol, step=spec.step, guard=spec.guard)


def build_adjoint(spec: AdjointSpec) -> Adjoint:
    """The spec's adjoint, constructed with the spec's fields as its arguments."""
    build = pkgutil.resolve_name(spec.implementation)
    return cast(Adjoint, build(**spec.model_dump(exclude={"kind"})))


def build_estimator(spec: MethodSpec) -> Estimator | None:
    """The function that estimates the meta-gradient of θ; None for the method that trains nothing."""
    if spec.implementation is None:
        return None
    estimate = partial(pkgutil.resolve_name(spec.implementation), **spec.arguments)
    return estimate if spec.own_adjoint is None else partial(estimate, adjoint=build_adjoint(spec.own_adjoint))
