"""Losses with kinks; references by a closed form or by central differences of the meta-loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amaml
from benchmarks.stress_problems.problem import (
    TASKS,
    Loss,
    StressProblem,
    Tensors,
    pick,
    step,
)


def a_bounded_solver(rng: np.random.Generator) -> dict[str, Any]:
    """Its steps shrink at every corner, the more the smaller the tolerance, so neither may be too small."""
    tolerance = float(10.0 ** -rng.integers(2, 5))
    solver = pick(rng, amaml.Dopri5, amaml.Bosh3)(rtol=tolerance, max_steps=3_000)
    return {"solver": solver, "adjoint": pick(rng, amaml.Discrete(), amaml.Interpolated())}


def absolute(rng: np.random.Generator) -> StressProblem:
    """Σ c|u|: every parameter moves to 0 at its own speed and stays there."""
    size = int(rng.integers(1, 6))
    theta, speeds = torch.randn(2, size, dtype=torch.float64)
    tasks = {"c": speeds.abs() * torch.ones(TASKS, 1, dtype=torch.float64)}
    question = {"length": float(rng.uniform(0.1, 2.0)), **a_bounded_solver(rng)}
    arrived = theta.abs() <= speeds.abs() * question["length"]
    return StressProblem(
        theta, (lambda u, task: (task["c"] * u.abs()).sum(), lambda u, _: u.sum()), tasks, question,
        lambda _: torch.where(arrived, 0.0, 1.0).double(),
    )  # fmt: skip


def hinge(rng: np.random.Generator) -> StressProblem:
    """A support vector machine with a plain hinge loss: the flow crosses corners and slides along some."""
    points = int(rng.integers(3, 12))
    tasks = {name: torch.randn(TASKS, points, 2, dtype=torch.float64) for name in ("x", "query_x")}

    def support(u: Tensor, task: Tensors) -> Tensor:
        return (1 - task["x"] @ u).relu().mean() + 0.05 * u.square().sum()

    def query(u: Tensor, task: Tensors) -> Tensor:
        return (task["query_x"] @ u - 1).square().mean()

    theta = torch.randn(2, dtype=torch.float64)
    question = {"length": float(rng.uniform(0.2, 2.0)), **a_bounded_solver(rng)}
    return _by_central_differences(theta, support, query, tasks, question)


def corners_of_relu(rng: np.random.Generator) -> StressProblem:
    """A small network of relu with an adaptive solver."""
    inputs = torch.randn(2, TASKS, int(rng.integers(2, 8)), 1, dtype=torch.float64)
    tasks = {"support": inputs[0], "query": inputs[1]}

    def loss(of: str) -> Loss:
        def value(u: Tensor, task: Tensors) -> Tensor:
            hidden = (task[of] * u[:3] + u[3:6]).relu()
            return 0.5 * (hidden @ u[6:9] - torch.sin(2 * task[of][:, 0])).square().mean()

        return value

    question = {"length": float(rng.uniform(0.2, 2.0)), **a_bounded_solver(rng)}
    theta = torch.randn(9, dtype=torch.float64)
    return _by_central_differences(theta, loss("support"), loss("query"), tasks, question)


def _by_central_differences(
    theta: Tensor, support: Loss, query: Loss, tasks: Tensors, question: dict[str, Any]
) -> StressProblem:
    """The flow's gradient by differences of J, which is solved by 2,000 steps of Heun for every unit of time. Corners leave
    errors of the size of a step, so the reference is good to a few per cent; where J itself has a corner or a jump within the
    differences' reach, those of two widths lie far apart, and there is none."""

    def reference(task: int) -> Tensor | None:
        one = {name: value[task] for name, value in tasks.items()}
        apart = torch.eye(len(theta), dtype=torch.float64)
        starts = torch.cat([theta + d * apart for d in (2e-3, -2e-3, 1e-3, -1e-3)])
        slope = torch.func.vmap(torch.func.grad(lambda u: -support(u, one)))
        count = math.ceil(2000 * question["length"])
        for _ in range(count):
            starts = step(amaml.Heun(), slope, starts, question["length"] / count)
        values = torch.func.vmap(lambda u: query(u, one))(starts).split(len(theta))
        wide, narrow = (values[0] - values[1]) / 4e-3, (values[2] - values[3]) / 2e-3
        return narrow if (wide - narrow).norm() < 0.02 * narrow.norm() else None

    return StressProblem(theta, (support, query), tasks, question, reference, reference_error=0.05)
