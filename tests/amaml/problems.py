"""Problems with known answers, shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import amaml

Tensors = dict[str, Tensor]
T = TypeVar("T")


def done(work: Generator[None, None, T]) -> tuple[T, int]:
    """The value of the generator, and how often it yielded."""
    times = 0
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value, times
        times += 1


def quadratic(batch: int, size: int, condition: float, dtype: torch.dtype = torch.float64) -> Tensors:
    """½(u−a)ᵀA(u−a) with eigenvalues from 1/condition to 1 times 10, and a linear-quadratic query loss."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(batch, size, size, generator=generator, dtype=torch.float64)).Q
    eigenvalues = 10 * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size, dtype=torch.float64)
    a = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    b = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    matrix = basis @ torch.diag(eigenvalues) @ basis.mT
    return {"A": matrix.to(dtype), "a": a.to(dtype), "b": b.to(dtype)}


def quadratic_support(u: Tensor, task: Tensors) -> Tensor:
    away = u - task["a"]
    return 0.5 * away @ task["A"] @ away


def quadratic_query(u: Tensor, task: Tensors) -> Tensor:
    return (u - task["b"]).square().sum() + 0.1 * u.pow(4).sum()


def flow_of_quadratic(theta: Tensor, tasks: Tensors, length: float) -> tuple[Tensor, Tensor]:
    """u(T) = a + e^{−AT}(θ−a) and the gradient e^{−AT}∇L_qry(u(T)), one row for each task."""
    decay = torch.matrix_exp(-tasks["A"] * length)
    u = tasks["a"] + (decay @ (theta - tasks["a"]).unsqueeze(-1)).squeeze(-1)
    gradient = 2 * (u - tasks["b"]) + 0.4 * u.pow(3)
    return u, (decay @ gradient.unsqueeze(-1)).squeeze(-1)


def cosines(batch: int, points: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
    """One-dimensional CosMixture tasks."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    c, phase, rate = uniform(0.1, 1, batch, 1, 1), uniform(0.5, 2, batch, 1, 1), uniform(3, 6, batch, 1, 1)
    tasks = {}
    for rows in ("support", "query"):
        x = uniform(-1, 1, batch, points, 1)
        tasks[f"{rows}_x"] = x.to(dtype)
        tasks[f"{rows}_y"] = (-c * torch.cos(rate * torch.pi * x + phase) - x.square()).to(dtype)
    return tasks


def network(
    hidden: list[int], dtype: torch.dtype = torch.float64, activation: Any = "tanh", seed: int = 0
) -> amaml.MLP:
    torch.manual_seed(seed)
    return amaml.MLP(1, hidden, 1, activation).to(dtype)


def unrolled(
    params: Tensors, support: Any, query: Any, tasks: Any, steps: int, step: float, rates: Any = None
) -> Tensors:
    """The meta-gradient of `steps` gradient descent steps by autograd, one task at a time, without the library's code. Parameters
    without requires_grad, where others have it, stay as they are and have no gradient."""
    named = dict(params)
    trained = [name for name in named if named[name].requires_grad] or list(named)
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    batch = len(tree_leaves(tasks)[0])
    for index in range(batch):
        task = tree_map(lambda leaf, index=index: leaf[index], tasks)
        theta = {name: named[name].detach().clone().requires_grad_() for name in trained}
        u = {**named, **theta}
        for _ in range(steps):
            slopes = torch.autograd.grad(
                support(u, task), [u[name] for name in trained], create_graph=True, materialize_grads=True
            )
            scales = [step if rates is None else step * rates[name] for name in trained]
            moved = zip(trained, scales, slopes, strict=True)
            u = {**u, **{name: u[name] - scale * slope for name, scale, slope in moved}}
        slopes = torch.autograd.grad(query(u, task), list(theta.values()), materialize_grads=True)
        for name, slope in zip(trained, slopes, strict=True):
            total[name] += slope.detach() / batch
    return total


def start(net: torch.nn.Module) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def flat(named: Tensors, lead: int = 0) -> Tensor:
    return torch.cat([tensor.flatten(lead) for tensor in named.values()], dim=lead).double()


def apart(a: Tensor, b: Tensor) -> float:
    """Relative distance ‖a−b‖/‖b‖."""
    return float((a.double() - b.double()).norm() / b.double().norm())
