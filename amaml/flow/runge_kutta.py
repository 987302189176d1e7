"""One explicit Runge–Kutta step, and its exact reverse, for a batch of tasks that each have their own step size."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from amaml.flow.tableau import Tableau

StepSize = float | Tensor
"""One number for all tasks, or [A, 1]. The state of a task with h=0 doesn't change by a bit."""


class Weights(NamedTuple):
    """A tableau's coefficients as tensors."""

    a: list[Tensor]
    columns: list[Tensor]
    """Column i of `a` below the diagonal: the weights of stage i in the later stages."""
    b: Tensor
    error: Tensor
    midpoint: Tensor


@cache
def _weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Weights:
    def row(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    s = tableau.stages
    columns = [tuple(tableau.a[j][i] for j in range(i + 1, s)) for i in range(s)]
    return Weights(
        a=[row(values) for values in tableau.a],
        columns=[row(values) for values in columns],
        b=row(tableau.b),
        error=row(tableau.error or ()),
        midpoint=row(tableau.midpoint or ()),
    )


def weights(tableau: Tableau, like: Tensor) -> Weights:
    """The tableau's coefficients with the dtype and device of `like`."""
    return _weights(tableau, like.dtype, like.device)


def combine(coefficients: Tensor, slopes: Tensor) -> Tensor:
    """Σ_i c_i slopes_i: [s], [s, A, D] → [A, D]."""
    if len(coefficients) == 1:
        return slopes[0] * coefficients
    return (coefficients @ slopes.flatten(1)).view_as(slopes[0])


def stages(
    slope: Callable[[int, Tensor], Tensor], tableau: Tableau, u: Tensor, h: StepSize, first: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """Stage states U_i (a list of [A, D]) and slopes k_i = slope(i, U_i) [s, A, D]; `first` is k_0, if it is known already."""
    a = weights(tableau, u).a
    slopes = u.new_empty((tableau.stages, *u.shape))
    states = [u]
    slopes[0] = slope(0, u) if first is None else first
    for i in range(1, tableau.stages):
        states.append(u + h * combine(a[i], slopes[:i]))
        slopes[i] = slope(i, states[i])
    return states, slopes


def stage_states(field: Callable[[Tensor], Tensor], tableau: Tableau, u: Tensor, h: StepSize) -> list[Tensor]:
    """The stage states without the last stage's slope, which isn't evaluated."""
    last = tableau.stages - 1
    if last == 0:
        return [u]
    nothing = u.new_zeros(())
    return stages(lambda i, v: field(v) if i < last else nothing, tableau, u, h)[0]


def advance(field: Callable[[Tensor], Tensor], tableau: Tableau, u: Tensor, h: StepSize) -> Tensor:
    """u after one step."""
    if tableau.stages == 1:
        return u.add(field(u), alpha=h) if isinstance(h, float) else u + h * field(u)
    _, slopes = stages(lambda _, v: field(v), tableau, u, h)
    return u + h * combine(weights(tableau, u).b, slopes)


def reverse(
    transposed: Callable[[Tensor, Tensor], Tensor],
    tableau: Tableau,
    states: list[Tensor],
    h: StepSize,
    adjoint: Tensor,
    visit: Callable[[Tensor, Tensor], None] | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """λ before the step from λ after it: the transpose of the step's derivative, applied stage by stage.

    With the stage cotangents k̄_i = h (b_i λ + Σ_{j>i} a_ji Ū_j) and their products Ū_i = (∂f/∂u(U_i))ᵀ k̄_i, λ₋ = λ + Σ Ū_i.
    `transposed(U, k̄)` gives Ū; `visit(U_i, k̄_i)` is called at every stage, for derivatives with respect to the field itself;
    `watch(k̄_0, Ū_0)` is called at the first stage.
    """
    columns = weights(tableau, adjoint).columns
    products = adjoint.new_empty((tableau.stages, *adjoint.shape))
    for i in reversed(range(tableau.stages)):
        cotangent = adjoint * (tableau.b[i] * h)
        if i + 1 < tableau.stages:
            cotangent += combine(columns[i], products[i + 1 :]) * h
        if visit is not None:
            visit(states[i], cotangent)
        products[i] = transposed(states[i], cotangent)
    if watch is not None:
        watch(cotangent, products[0])
    return adjoint + (products[0] if tableau.stages == 1 else products.sum(0))
