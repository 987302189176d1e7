"""From a spec's part to the thing it names; `implementation` is imported here and nowhere else."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from amaml.adjoint.backsolve import Backsolve
from amaml.adjoint.discrete import Discrete
from amaml.adjoint.interpolated import Interpolated
from amaml.draws import key
from amaml.families.base import Family
from amaml.flow.solvers import RK4, Bosh3, Dopri5, Euler, Heun, Solver, TorchDiffEq
from amaml.spec import (
    AdjointSpec,
    BacksolveSpec,
    DiscreteSpec,
    FamilySpec,
    InterpolatedSpec,
    ModelSpec,
    SolverSpec,
)

_FIXED = {"euler": Euler, "heun": Heun, "rk4": RK4}
_ADAPTIVE = {"bosh3": Bosh3, "dopri5": Dopri5}


def build_family(
    spec: FamilySpec, *, seed: int, dtype: torch.dtype, device: torch.device, datasets: Mapping[str, Path]
) -> Family:
    """The task family; raises DataError if the data sets can't serve it."""
    build = pkgutil.resolve_name(spec.implementation)
    return cast(Family, build(spec, dtype=dtype, device=device, seed=seed, datasets=datasets))


def build_model(spec: ModelSpec, *, in_features: int, out_features: int, seed: int) -> nn.Module:
    """The network on the CPU in float32, at a random start that is a function of the seed alone."""
    build = pkgutil.resolve_name(spec.implementation)
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


def build_adjoint(spec: AdjointSpec) -> Discrete | Interpolated | Backsolve:
    """The adjoint."""
    match spec:
        case DiscreteSpec():
            return Discrete(checkpoints=spec.checkpoints)
        case InterpolatedSpec():
            return Interpolated(scheme=spec.scheme)
        case BacksolveSpec():
            return Backsolve(max_evaluations=spec.max_evaluations)
