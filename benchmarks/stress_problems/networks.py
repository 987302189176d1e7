"""Regression by networks that are stiff or were edited; references by autograd or SciPy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import amaml
from benchmarks.stress_problems.problem import (
    FIXED,
    TASKS,
    StressProblem,
    Tensors,
    any_solver,
    flat,
    log_uniform,
    pick,
    unrolled,
)
from benchmarks.workload import independent_gradient


def of_network(net: nn.Module, tasks: Tensors, question: dict[str, Any]) -> StressProblem:
    """Regression by the network itself, called through PyTorch."""
    params = {name: value.detach().clone() for name, value in net.named_parameters()}
    exact = copy.deepcopy(net).double()

    def reference(task: int) -> Tensor:
        def loss(u: Tensor, rows: str) -> Tensor:
            parts = torch.split(u, [value.numel() for value in params.values()])
            named = {name: part.view(params[name].shape) for name, part in zip(params, parts, strict=True)}
            predicted = torch.func.functional_call(exact, named, (tasks[f"{rows}_x"][task].double(),))
            return 0.5 * (predicted - tasks[f"{rows}_y"][task].double()).square().mean()

        theta = flat(params).double()
        if isinstance(question["solver"], FIXED):
            return unrolled(loss, theta, question["length"], question["solver"])
        return independent_gradient(loss, theta, question["length"])

    return StressProblem(params, amaml.regression_losses(net), tasks, question, reference)


def rows(rng: np.random.Generator, inputs: int, outputs: int, scale: float, dtype: torch.dtype) -> Tensors:
    counts = {"support": int(rng.integers(2, 40)), "query": int(rng.integers(2, 40))}
    return {
        f"{of}_{name}": (scale * torch.randn(TASKS, count, size, dtype=torch.float64)).to(dtype)
        for of, count in counts.items()
        for name, size in (("x", inputs), ("y", outputs))
    }


def network(rng: np.random.Generator) -> StressProblem:
    """A network that is stiff because of the size of inputs and weights, which doesn't influence the chosen steps."""
    dtype = pick(rng, torch.float32, torch.float64)
    inputs, outputs = (int(rng.integers(1, 4)) for _ in range(2))
    hidden = [int(width) for width in rng.integers(1, 17, size=rng.integers(1, 4))]
    activation = pick(rng, "tanh", "sigmoid", "softplus", "relu")
    net = amaml.MLP(inputs, hidden, outputs, activation).to(dtype)
    solver = any_solver(rng, dtype)
    if activation == "relu":  # the kind "corners of relu" has adaptive solvers
        solver = {"solver": pick(rng, *FIXED)(step=log_uniform(rng, 0.005, 1.0))}
    question = {"length": float(rng.uniform(0.2, 3.0)), **solver}
    return of_network(net, rows(rng, inputs, outputs, log_uniform(rng, 0.3, 4.0), dtype), question)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return found


def edited_network(rng: np.random.Generator) -> StressProblem:
    """An MLP that was edited after its construction."""
    dtype = pick(rng, torch.float32, torch.float64)
    net: Any = amaml.MLP(2, [6, 6], 1, pick(rng, "tanh", "sigmoid"))
    edit = pick(rng, "activation", "dropped", "appended", "hook", "tied")
    if edit == "activation":
        net[1] = pick(rng, nn.SiLU(), nn.Softplus(), nn.Tanh())
    elif edit == "dropped":
        net.pop(3)
    elif edit == "appended":
        net.append(nn.Tanh())
    elif edit == "hook":
        net.register_forward_pre_hook(_tripled)
    else:
        net = Tied()
    question = {"length": float(rng.uniform(0.2, 2.0)), **any_solver(rng, dtype)}
    problem = of_network(net.to(dtype), rows(rng, 2, 1, 1.0, dtype), question)
    problem.facts["edit"] = edit
    return problem


def _tripled(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (3 * inputs[0],)
