"""What a meta-gradient's certificate says, the exact gradients that it is compared with, and problems for both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import amaml
from amaml.methods.certificate import Certificate, verdicts
from amaml.methods.problem import pose
from benchmarks.stress_problems.problem import step
from tests.amaml.problems import Tensors, cosines, network

FLOAT64 = torch.float64
THETA = torch.linspace(-1, 1, 5, dtype=FLOAT64)


def judged(
    gradients: Tensor,
    params: Any,
    support: Any,
    query: Any,
    tasks: Any,
    *,
    rates: Tensor | None = None,
    spent: int = 0,
    **question: Any,
) -> Certificate:
    """The certificate of gradients [B, P] that are handed in as the answer to a question."""
    problem, layout = pose(params, support, query, tasks, **question)
    problem = replace(problem, rates=rates)
    evaluations = torch.full((len(gradients),), spent)
    return Certificate.of([*verdicts(problem, support, query, tasks, layout, gradients, evaluations)])


def certified(*arguments: Any, **question: Any) -> tuple[amaml.MetaGradient, Certificate]:
    answer = amaml.meta_gradient(*arguments, **question, certify=True)
    assert answer.certificate is not None
    return answer, answer.certificate


def gradient_of_flow(
    theta: Tensor, tasks: Tensors, horizons: list[tuple[float, float]], proximal: float, in_query: bool, rates: Tensor
) -> Tensor:
    """dJ/dθ [B, P] of `quadratic_support` and `quadratic_query`, by matrix exponentials."""
    identity = torch.eye(len(theta), dtype=FLOAT64)
    curvature = tasks["A"] + proximal * identity
    pulled = torch.linalg.solve(curvature, proximal * identity)  # of the flow's resting place with respect to θ
    rest = torch.linalg.solve(curvature, (tasks["A"] @ tasks["a"][..., None])) + pulled @ theta[:, None]
    total = torch.zeros_like(tasks["a"])
    for time, weight in horizons:
        decay = torch.matrix_exp(-time * rates[:, None] * curvature)
        u = (rest + decay @ (theta[:, None] - rest))[..., 0]
        slope = 2 * (u - tasks["b"]) + 0.4 * u.pow(3)
        away = proximal * in_query * (u - theta)
        moves = pulled + decay @ (identity - pulled)
        total += weight * ((moves.mT @ (slope + away)[..., None])[..., 0] - away)
    return total


ONES = torch.ones(5, dtype=FLOAT64)


def unrolled(theta: Tensor, support: Any, query: Any, task: Any, horizons: list[float], solver: Any) -> Tensor:
    """The gradient [P] of a discrete map, by autograd through its steps: loops of textbooks, or torchdiffeq."""
    u = origin = theta.detach().clone().requires_grad_()

    def field(u: Tensor) -> Tensor:
        return -torch.autograd.grad(support(u, task), u, create_graph=True)[0]

    total, before = torch.zeros((), dtype=FLOAT64), 0.0
    for time in horizons:
        count = max(1, round((time - before) / solver.step))
        if isinstance(solver, amaml.TorchDiffEq):
            grid = torch.linspace(before, time, count + 1, dtype=FLOAT64)
            u = torchdiffeq.odeint(lambda _, u: field(u), u, grid, method=solver.method)[-1]
        else:
            for _ in range(count):
                u = step(solver, field, u, (time - before) / count)
        total, before = total + query(u, task), time
    return torch.autograd.grad(total, origin)[0]


def mlp_problem(seed: int = 0) -> tuple[amaml.MLP, Tensors, dict[str, Any]]:
    return network([7], seed=seed), cosines(2, 15, seed=seed), {"length": 1.0, "solver": amaml.Dopri5(1e-7)}
