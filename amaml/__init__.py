"""Adjoint MAML: meta-gradients by two ODE solves (Li, Wang, Narayan, Kirby, Zhe, arXiv 2110.08432).

Public names are imported when they are first used, so that `import amaml.spec` doesn't import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "meta_gradient": "amaml.methods.amaml",
    "MetaGradient": "amaml.methods.amaml",
    "Euler": "amaml.flow.solvers",
    "Heun": "amaml.flow.solvers",
    "RK4": "amaml.flow.solvers",
    "Bosh3": "amaml.flow.solvers",
    "Dopri5": "amaml.flow.solvers",
    "TorchDiffEq": "amaml.flow.torchdiffeq_solver",
    "Discrete": "amaml.adjoint.discrete",
    "Interpolated": "amaml.adjoint.interpolated",
    "Backsolve": "amaml.adjoint.backsolve",
    "SolveError": "amaml.flow.result",
    "MLP": "amaml.models.mlp",
    "regression_losses": "amaml.models.losses",
    "train": "amaml.run.training",
    "load": "amaml.run.learned_model",
    "LearnedModel": "amaml.run.learned_model",
    "adapt": "amaml.run.adaptation",
    "predict": "amaml.run.adaptation",
    "JobSpec": "amaml.spec",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names below are resolved by __getattr__

if TYPE_CHECKING:
    from amaml.adjoint.backsolve import Backsolve
    from amaml.adjoint.discrete import Discrete
    from amaml.adjoint.interpolated import Interpolated
    from amaml.flow.result import SolveError
    from amaml.flow.solvers import RK4, Bosh3, Dopri5, Euler, Heun
    from amaml.flow.torchdiffeq_solver import TorchDiffEq
    from amaml.methods.amaml import MetaGradient, meta_gradient
    from amaml.models.losses import regression_losses
    from amaml.models.mlp import MLP
    from amaml.run.adaptation import adapt, predict
    from amaml.run.learned_model import LearnedModel, load
    from amaml.run.training import train
    from amaml.spec import JobSpec


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'amaml' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
