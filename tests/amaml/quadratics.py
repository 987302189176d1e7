"""Quadratic support losses, whose flows and meta-gradients have closed forms."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.amaml.problems import Tensors


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
