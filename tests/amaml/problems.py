"""Small networks, tasks and meta-gradients by autograd, shared by the engine's tests."""

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
