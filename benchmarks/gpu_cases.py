"""What `benchmarks.gpu` solves: meta-gradients of an MLP and of a convolutional network, on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import amaml
from amaml.models.conv4.module import Conv4
from amaml.models.losses import classification_losses
from benchmarks.workload import STEP, TASKS, work

MANY = 264
"""Tasks: two for each of an H100's or H200's 132 multiprocessors."""


@dataclass(frozen=True)
class Case:
    """A meta-gradient to compute, on the device of its tensors."""

    name: str
    losses: tuple[Any, Any]
    params: dict[str, Tensor]
    tasks: dict[str, Tensor]
    length: float
    solver: Any
    tolerance: float | None = None
    """The tolerance of an adaptive solver."""

    def to(self, *where: torch.dtype | torch.device) -> Case:
        params, tasks = self.params, self.tasks
        for place in where:
            params = {name: value.to(place) for name, value in params.items()}
            tasks = {name: value.to(place) for name, value in tasks.items()}
        return replace(self, params=params, tasks=tasks)

    def only(self, which: slice | Tensor) -> Case:
        """The same case with these of its tasks, in this order."""
        return replace(self, tasks={name: value[which] for name, value in self.tasks.items()})

    def solve(self, adjoint: Any = None) -> amaml.MetaGradient:
        return amaml.meta_gradient(
            self.params, *self.losses, self.tasks, length=self.length, solver=self.solver, adjoint=adjoint
        )

    def per_task(self) -> Tensor:
        """The gradient of every task [B, P], on the CPU."""
        return torch.cat([value.flatten(1) for value in self.solve().per_task.values()], dim=1).cpu()


def regression(name: str, tasks: int, length: float, solver: Any, tolerance: float | None = None) -> Case:
    """The MLP of `benchmarks.workload` from its trained start, float32."""
    job = work("trained", length, tasks=tasks)
    return Case(name, job.losses, job.params, job.tasks, job.length, solver, tolerance)


def conv4(quick: bool) -> Case:
    """Five classes, five shots and fifteen queries of each, pictures of 8 × 8 pixels, 16 filters."""
    generator = torch.Generator().manual_seed(1)
    tasks, steps = (2, 1) if quick else (TASKS, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Conv4((1, 8, 8), 16, 5)
    data = {}
    for rows, shots in (("support", 5), ("query", 15)):
        labels = torch.eye(5).repeat(shots, 1)
        data[f"{rows}_x"] = torch.randn(tasks, len(labels), 64, generator=generator)
        data[f"{rows}_y"] = labels.expand(tasks, -1, -1).clone()
    params = {name: value.detach().clone() for name, value in net.named_parameters()}
    return Case(f"conv4, {tasks} tasks", classification_losses(net), params, data, steps * STEP, amaml.Euler(STEP))


def cases(quick: bool) -> list[Case]:
    """The cases that are timed."""
    few, many = (2, 3) if quick else (TASKS, MANY)
    short, long = (0.05, 0.1) if quick else (2.0, 20.0)
    dopri5 = amaml.Dopri5(1e-5, 1e-5)
    return [
        *(regression(f"exact MAML, {tasks} tasks", tasks, short, amaml.Euler(STEP)) for tasks in (few, many)),
        *(regression(f"dopri5 1e-5, T={T:g}, {few} tasks", few, T, dopri5, 1e-5) for T in (short, long)),
        conv4(quick),
    ]
