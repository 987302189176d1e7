"""What kinds of stress problems have in common: what a problem is, how solvers are drawn, and gradients of discrete maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amaml

FIXED = (amaml.Euler, amaml.Heun, amaml.RK4)
TASKS = 2
Tensors = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class StressProblem:
    """Arguments of `meta_gradient`, and a reference for its result."""

    params: Any
    losses: tuple[Loss, Loss]
    tasks: Tensors
    question: dict[str, Any]
    reference: Callable[[int], Tensor | None]
    """A task's gradient [P] in float64; None where the meta-loss has none, or none that can be computed."""
    reference_error: float = 1e-9
    """Relative error of the reference."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The problem's description in the results."""


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def an_adaptive_solver(rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    tolerance = float(10.0 ** -rng.integers(2, 7 if dtype is torch.float32 else 9))
    adjoint = pick(rng, amaml.Discrete(), amaml.Discrete(), amaml.Interpolated())
    return {"solver": pick(rng, amaml.Dopri5, amaml.Bosh3)(rtol=tolerance, atol=tolerance), "adjoint": adjoint}


def any_solver(rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    if rng.integers(2):
        return an_adaptive_solver(rng, dtype)
    return {"solver": pick(rng, *FIXED)(step=log_uniform(rng, 0.005, 1.0))}


def unrolled(loss: Callable[[Tensor, str], Tensor], theta: Tensor, length: float, solver: Any) -> Tensor:
    """The gradient [P] of a discrete map, by autograd through its steps."""
    count = max(1, round(length / solver.step))
    u = start = theta.detach().clone().requires_grad_()

    def slope(at: Tensor) -> Tensor:
        return -torch.autograd.grad(loss(at, "support"), at, create_graph=True)[0]

    for _ in range(count):
        u = step(solver, slope, u, length / count)
    return torch.autograd.grad(loss(u, "query"), start)[0]


def step(solver: Any, slope: Callable[[Tensor], Tensor], u: Tensor, h: float) -> Tensor:
    """One step of a fixed-step solver, as textbooks have it."""
    k1 = slope(u)
    if isinstance(solver, amaml.Euler):
        return u + h * k1
    if isinstance(solver, amaml.Heun):
        return u + h / 2 * (k1 + slope(u + h * k1))
    k2 = slope(u + h / 2 * k1)
    k3 = slope(u + h / 2 * k2)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(u + h * k3))


def flat(named: Any, axes: int = 0) -> Tensor:
    """Named tensors with this many leading axes as one tensor [..., P], in their order; a flat tensor as it is."""
    return named if isinstance(named, Tensor) else torch.cat([v.flatten(axes) for v in named.values()], dim=axes)
