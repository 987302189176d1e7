"""Quadratic support losses, whose flows have closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.stress_problems.problem import (
    FIXED,
    TASKS,
    StressProblem,
    Tensors,
    an_adaptive_solver,
    any_solver,
    log_uniform,
    unrolled,
)


def of_quadratic(
    theta: Tensor, matrix: Tensor, rest: Tensor, question: dict[str, Any], *, loudness: float = 1.0, quiet: bool = False
) -> StressProblem:
    """Support loss ½(u−a)ᵀA(u−a), query loss |u−b|² + Σ u⁴/10 (both times `loudness`; nothing if `quiet`)."""
    tasks = {"A": matrix, "a": rest, "b": torch.randn(TASKS, len(theta), dtype=torch.float64)}

    def support(u: Tensor, task: Tensors) -> Tensor:
        away = u - task["a"]
        return 0.5 * away @ task["A"] @ away

    def query(u: Tensor, task: Tensors) -> Tensor:
        return (0.0 if quiet else loudness) * ((u - task["b"]).square().sum() + 0.1 * u.pow(4).sum())

    def reference(task: int) -> Tensor:
        one = {name: value[task] for name, value in tasks.items()}
        if isinstance(question["solver"], FIXED):

            def loss(u: Tensor, of: str) -> Tensor:
                return support(u, one) if of == "support" else query(u, one)

            return unrolled(loss, theta, question["length"], question["solver"])
        return _of_the_flow(theta, one, lambda u: torch.func.grad(query)(u, one), question)

    return StressProblem(theta, (support, query), tasks, question, reference)


def _of_the_flow(theta: Tensor, task: Tensors, slope: Callable[[Tensor], Tensor], question: dict[str, Any]) -> Tensor:
    proximal = question.get("proximal", 0.0)
    rates = question.get("rates", torch.ones_like(theta))
    in_query = proximal * question.get("proximal_in_query", False)
    root = rates.sqrt()
    # √α∘(A+ρ)∘√α is symmetric, so its exponential is exact to rounding at any stiffness.
    curvature = task["A"] + proximal * torch.eye(len(theta), dtype=torch.float64)
    eigenvalues, basis = torch.linalg.eigh(root[:, None] * curvature * root)
    pulled = torch.linalg.solve(curvature, proximal * torch.eye(len(theta), dtype=torch.float64))
    still = torch.linalg.solve(curvature, task["A"] @ task["a"] + proximal * theta)
    total = torch.zeros_like(theta)
    for time, weight in question.get("horizons") or [(question["length"], 1.0)]:
        decay = root[:, None] * (basis @ torch.diag(torch.exp(-time * eigenvalues)) @ basis.mT) / root
        u = still + decay @ (theta - still)
        away = in_query * (u - theta)
        moves = pulled + decay @ (torch.eye(len(theta), dtype=torch.float64) - pulled)
        total += weight * (moves.mT @ (slope(u) + away) - away)
    return total


def spectrum(size: int, largest: float, smallest: float) -> Tensor:
    """Symmetric matrices [TASKS, P, P] with eigenvalues spread evenly by their logarithms."""
    basis = torch.linalg.qr(torch.randn(TASKS, size, size, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.logspace(math.log10(smallest), math.log10(largest), size).double()) @ basis.mT


def at_rest(rng: np.random.Generator) -> StressProblem:
    """The support data are fitted at the start, so u doesn't move and λ does."""
    size = int(rng.integers(2, 12))
    theta = torch.randn(size, dtype=torch.float64)
    question = {"length": log_uniform(rng, 0.5, 10.0), **an_adaptive_solver(rng)}
    return of_quadratic(theta, spectrum(size, log_uniform(rng, 0.5, 5.0), 0.1), theta.expand(TASKS, -1), question)


def stiff(rng: np.random.Generator) -> StressProblem:
    """λmax·T up to 3,000."""
    size = int(rng.integers(3, 12))
    length = log_uniform(rng, 0.2, 3.0)
    matrix = spectrum(size, log_uniform(rng, 10.0, 3000.0) / length, 0.1)
    question = {"length": length, **an_adaptive_solver(rng)}
    return of_quadratic(torch.randn(size, dtype=torch.float64), matrix, torch.randn(TASKS, size).double(), question)


def units(rng: np.random.Generator) -> StressProblem:
    """Losses of 1e-8 and of 1e8, parameters of very different sizes."""
    size = int(rng.integers(3, 8))
    sizes = torch.from_numpy(10.0 ** rng.uniform(-3, 1, size))
    matrix = spectrum(size, 3.0, 0.3) / sizes[:, None] / sizes
    question = {"length": log_uniform(rng, 0.2, 2.0), "rates": sizes.square(), **an_adaptive_solver(rng)}
    rest = sizes * torch.randn(TASKS, size, dtype=torch.float64)
    loudness = float(10.0 ** rng.integers(-8, 9))
    return of_quadratic(sizes * torch.randn(size, dtype=torch.float64), matrix, rest, question, loudness=loudness)


def pulled(rng: np.random.Generator) -> StressProblem:
    """Proximal terms, rates, several horizons whose weights nearly cancel."""
    size = int(rng.integers(2, 8))
    question = {
        "horizons": [(0.4, 1.0), (0.4 + log_uniform(rng, 1e-3, 1.0), -1.0)] if rng.integers(2) else [(1.0, 1.0)],
        "proximal": log_uniform(rng, 0.01, 10.0) if rng.integers(2) else 0.0,
        "proximal_in_query": bool(rng.integers(2)),
        "rates": torch.from_numpy(10.0 ** rng.uniform(-2, 1, size)),
        **an_adaptive_solver(rng),
    }
    matrix = spectrum(size, log_uniform(rng, 1.0, 20.0), 0.1)
    return of_quadratic(torch.randn(size, dtype=torch.float64), matrix, torch.randn(TASKS, size).double(), question)


def nothing(rng: np.random.Generator) -> StressProblem:
    """A constant query loss, whose gradient is 0."""
    theta = torch.randn(4, dtype=torch.float64)
    question = {"length": 1.0, **any_solver(rng)}
    return of_quadratic(theta, spectrum(4, 3.0, 0.3), torch.randn(TASKS, 4).double(), question, quiet=True)
