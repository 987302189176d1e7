"""The adjoint of torchdiffeq's solvers: backpropagation through their autograd graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from amaml.adjoint.sensitivity import Sensitivity
from amaml.flow.field import GradientFlow
from amaml.flow.snapshots import Snapshots, nothing_kept
from amaml.flow.torchdiffeq_solver import GraphSolution


@dataclass(frozen=True)
class Graph:
    """Backpropagation through torchdiffeq's steps; the field's own backward pass is a Hessian-vector product."""

    controlled: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def snapshots(self, rounds: list[int] | None, state_bytes: int) -> Snapshots:
        return nothing_kept()

    def vjp(
        self,
        field: GradientFlow,
        solution: GraphSolution,
        cotangents: list[Tensor],
        sensitivity: Sensitivity,
        rtol: float,
    ) -> Tensor:
        if not sensitivity.idle:
            solution.visit.append(partial(sensitivity.visit, field))
        adjoint = torch.zeros_like(cotangents[-1])
        for k, (before, after) in reversed(list(enumerate(solution.intervals))):
            (adjoint,) = torch.autograd.grad(after, before, adjoint + cotangents[k])
            sensitivity.close_interval(k)
        return adjoint
