"""Physics-informed learning (Raissi, Perdikaris, Karniadakis 2019) of Poisson's equation −Δu = f on (0, 1) or (0, 1)², with u = g
on the boundary.

A task is a random forcing f with random boundary values g. Its solution is known in closed form, since it is a finite sum with
normal coefficients of sines, which vanish on the boundary, and of harmonic functions, which have no forcing. A row's target is f
inside the domain and g on its boundary, so that a task is rows (x, y) as in every family. The support loss is the residual of the
equation plus the error on the boundary, and never uses the solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from amaml.families.base import Split, Tasks
from amaml.families.points import judged_points
from amaml.families.poisson.spec import PoissonSpec
from amaml.families.scaling import Array, Scaling
from amaml.flow.derivatives import Loss
from amaml.models.losses import NetworkLoss, RegressionLoss, Rows
from amaml.objectives import NRMSE, Objective
from amaml.randomness import generator

X_STD = 0.5
"""The scale of the inputs, which are (x − ½)/½, so that the boundary is at exactly ±1."""
ON_BOUNDARY = 1 - 1e-6
MARGIN = 1e-3
"""The least distance of inner points from the boundary, so that rounding moves none of them onto it."""


@dataclass(frozen=True)
class Basis:
    """Functions whose sums, with independent standard normal coefficients, are the tasks' solutions."""

    dim: int
    modes: int

    def forced(self, x: Array) -> tuple[Array, Array]:
        """The sines that vanish on the boundary and their −Δ, at x [n, dim]: two arrays [n, k]."""
        numbers = range(1, self.modes + 1)
        sines = [np.sin(k * np.pi * x) for k in numbers]
        if self.dim == 1:
            forcing = np.pi**2 * np.concatenate(sines, axis=1)
            return forcing / (np.pi * np.arange(1, self.modes + 1)) ** 2, forcing
        pairs = list(product(numbers, repeat=2))
        forcing = 2 * np.pi**2 * np.stack([sines[j - 1][:, 0] * sines[k - 1][:, 1] for j, k in pairs], axis=1)
        return forcing / np.array([np.pi**2 * (j * j + k * k) for j, k in pairs]), forcing

    def harmonic(self, x: Array) -> Array:
        """The functions with Δ = 0, at x [n, dim]: an array [n, k]. On the interval they are linear; on the square, bilinear, and
        for each side also functions that are sines on it and vanish on the other three."""
        if self.dim == 1:
            return np.concatenate((1 - x, x), axis=1)
        (one, other), columns = (np.stack((1 - x[:, i], x[:, i])) for i in (0, 1)), []
        columns += [first * second for first, second in product(one, other)]
        for along, across in ((x[:, 0], other), (x[:, 1], one)):
            for k, rising in product(range(1, self.modes + 1), across):
                # sinh(kπs)/sinh(kπ), computed without overflow
                grown = np.exp(k * np.pi * (rising - 1)) * np.expm1(-2 * k * np.pi * rising) / np.expm1(-2 * k * np.pi)
                columns.append(np.sin(k * np.pi * along) * grown / k)
        return np.stack(columns, axis=1)

    def solutions(self, x: Array) -> Array:
        """All functions of the basis, at x [n, dim]: an array [n, k]."""
        return np.concatenate((self.forced(x)[0], self.harmonic(x)), axis=1)

    def forcings(self, x: Array) -> Array:
        """−Δ of all functions of the basis, at x [n, dim]: an array [n, k]."""
        forcing, harmonic = self.forced(x)[1], self.harmonic(x)
        return np.concatenate((forcing, np.zeros_like(harmonic)), axis=1)

    @cached_property
    def size(self) -> int:
        return int(self.solutions(np.full((1, self.dim), 0.5)).shape[1])

    @cached_property
    def spread(self) -> tuple[float, float]:
        """The standard deviations of solutions and of forcings over tasks and domain, without random draws; both means are 0."""
        x = judged_points(self.dim, 0.0, 1.0)
        solution, forcing = (np.sqrt(np.square(f(x)).sum(axis=1).mean()) for f in (self.solutions, self.forcings))
        return float(solution), float(forcing)


@dataclass(frozen=True)
class ResidualLoss(NetworkLoss):
    """The loss ½ · mean of (−Δu − f)² over the rows inside the domain + weight · ½ · mean of (u − g)² over those on its boundary.

    Residuals are in units of the standard deviation of f, which is `forcing` in the units of standardised targets.
    """

    forcing: float
    weight: float

    def __call__(self, params: Mapping[str, Tensor], task: Mapping[str, Any]) -> Tensor:
        """The loss, a scalar; see `NetworkLoss.__call__`. `{rows}_x` [n, d] is standardised, so that the domain is (−1, 1)^d."""
        x, y = task[f"{self.rows}_x"], task[f"{self.rows}_y"]
        inside = (x.abs() < ON_BOUNDARY).all(dim=-1, keepdim=True).to(x.dtype)
        u, laplacian = _value_and_laplacian(self.net, params, x)
        residual = (-laplacian / X_STD**2 - y) / self.forcing
        within = (inside * residual.square()).sum() / inside.sum().clamp(min=1)
        around = ((1 - inside) * (u - y).square()).sum() / (1 - inside).sum().clamp(min=1)
        loss: Tensor = 0.5 * (within + self.weight * around)
        return loss


def _value_and_laplacian(net: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The values u [n, 1] and Δu [n, 1] at x [n, d]. Each row's value depends on that row alone, so that differentiating the sum
    over rows gives each row's own derivatives."""

    def total(at: Tensor) -> tuple[Tensor, Tensor]:
        value: Tensor = functional_call(net, dict(params), (at,))
        return value.sum(), value

    def slope(at: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        slopes, value = grad(total, has_aux=True)(at)
        return slopes[:, axis].sum(), value

    laplacian, value = torch.zeros_like(x[:, :1]), x[:, :1]
    for axis in range(x.shape[1]):
        second_derivatives, value = grad(slope, has_aux=True)(x, axis)
        laplacian = laplacian + second_derivatives[:, axis, None]
    return value, laplacian


def objective(spec: PoissonSpec) -> Objective:
    """The spec's objective: the residual as support loss, the error of the solution or the residual as query loss, and as metric
    the nRMSE against the exact solution."""
    solution, forcing = Basis(spec.dim, spec.modes).spread

    def losses(net: nn.Module) -> tuple[Loss, Loss]:
        def residual(rows: Rows) -> Loss:
            return ResidualLoss(net, rows, forcing / solution, spec.boundary_weight)

        return residual("support"), RegressionLoss(net, "query") if spec.judged_by == "solution" else residual("query")

    return Objective("poisson", losses, NRMSE)


class PoissonFamily:
    """Tasks with random forcings and boundary values. Each task and each batch has its own random generator."""

    out_features = 1
    outputs: ClassVar = ["u"]
    picture = None
    counts: ClassVar[dict[str, int]] = {}

    def __init__(self, spec: PoissonSpec, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._spec, self._seed, self._dtype, self._device = spec, seed, dtype, device
        self._basis = Basis(spec.dim, spec.modes)
        self.objective = objective(spec)
        self.in_features = spec.dim
        self.inputs = [f"x{i + 1}" for i in range(spec.dim)]
        sides = (0.5,) * spec.dim
        self.scaling = Scaling(sides, (X_STD,) * spec.dim, (0.0,), (self._basis.spread[0],))

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        if self._spec.train_tasks is None:
            chosen = np.arange(iteration * size, (iteration + 1) * size)
        else:
            chosen = random.choice(self._spec.train_tasks, size, replace=size > self._spec.train_tasks)
        solutions = np.stack([self._coefficients(generator(self._seed, "train", int(task))) for task in chosen])
        support_x = np.stack([self._points(random, self._spec.shots) for _ in chosen])
        query_x = np.stack([self._points(random, self._spec.queries) for _ in chosen])
        by_solution = self._spec.judged_by == "solution"
        query_y = self._solved(solutions, query_x) if by_solution else self._rows(solutions, query_x)
        return self._tasks(support_x, self._rows(solutions, support_x), query_x, query_y)

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        support_x, solutions = self._unseen(split, size)
        x = judged_points(self._spec.dim, 0.0, 1.0)
        query_x = np.broadcast_to(x, (len(solutions), *x.shape))
        return self._tasks(support_x, self._rows(solutions, support_x), query_x, self._solved(solutions, query_x))

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """The baselines `zero`, the mean solution, and `harmonic`, the solution of −Δu = 0 with the exact boundary values."""
        _, solutions = self._unseen(split, size)
        x = judged_points(self._spec.dim, 0.0, 1.0)
        harmonic = self._basis.harmonic(x)
        values = solutions[:, -harmonic.shape[1] :] @ harmonic.T
        boundary = self._tensor(self.scaling.standardise_y(values[..., None]))
        return {"zero": torch.zeros_like(boundary), "harmonic": boundary}

    def _unseen(self, split: Split, size: int) -> tuple[Array, Array]:
        """The support points [B, n, d] and the solutions' coefficients [B, k] of the split's first tasks."""
        randoms = [generator(self._seed, split, task) for task in range(min(size, self._spec.test_tasks))]
        solutions = np.stack([self._coefficients(random) for random in randoms])
        return np.stack([self._points(random, self._spec.shots) for random in randoms]), solutions

    def _coefficients(self, random: np.random.Generator) -> Array:
        return random.standard_normal(self._basis.size)

    def _points(self, random: np.random.Generator, within: int) -> Array:
        """Random points [n, d]: `within` points inside the domain, followed by those on its boundary."""
        inside = random.uniform(MARGIN, 1 - MARGIN, (within, self._spec.dim))
        if self._spec.dim == 1:
            return np.concatenate((inside, [[0.0], [1.0]]))
        sides = []
        for axis, end in product((0, 1), (0.0, 1.0)):
            side = np.full((self._spec.boundary, 2), end)
            side[:, 1 - axis] = random.uniform(0, 1, self._spec.boundary)
            sides.append(side)
        return np.concatenate((inside, *sides))

    def _solved(self, coefficients: Array, x: Array) -> Array:
        """The exact solutions [B, n, 1] at x [B, n, d]."""
        rows = [self._basis.solutions(own) @ c for c, own in zip(coefficients, x, strict=True)]
        return np.stack(rows)[..., None]

    def _rows(self, coefficients: Array, x: Array) -> Array:
        """The rows' targets [B, n, 1]: f inside the domain, g on its boundary."""
        forced = np.stack([self._basis.forcings(own) @ c for c, own in zip(coefficients, x, strict=True)])[..., None]
        around = ((x == 0) | (x == 1)).any(axis=-1, keepdims=True)
        return np.where(around, self._solved(coefficients, x), forced)

    def _tasks(self, support_x: Array, support_y: Array, query_x: Array, query_y: Array) -> Tasks:
        return {
            "support_x": self._tensor(self.scaling.standardise_x(support_x)),
            "support_y": self._tensor(self.scaling.standardise_y(support_y)),
            "query_x": self._tensor(self.scaling.standardise_x(query_x)),
            "query_y": self._tensor(self.scaling.standardise_y(query_y)),
        }

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, self._dtype)


def build(
    spec: PoissonSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    datasets: Mapping[str, Path],  # noqa: ARG001 - every family is built alike
) -> PoissonFamily:
    """The spec's task family."""
    return PoissonFamily(spec, seed=seed, dtype=dtype, device=device)
