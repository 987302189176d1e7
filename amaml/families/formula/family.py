"""The task family whose tasks are functions drawn from a formula, with their point pools, meta-batches and test points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amaml.families.base import Split, Tasks
from amaml.families.formula.cost import POOL
from amaml.families.formula.formulas import Alpine, CosMixture, Formula, Sinusoid
from amaml.families.formula.spec import AlpineSpec, CosMixtureSpec, SinusoidSpec, SyntheticFamilySpec
from amaml.families.points import judged_points
from amaml.families.scaling import Array, Moments, Scaling
from amaml.objectives import REGRESSION
from amaml.randomness import generator

POPULATION = 1000
"""The largest number of training tasks, from the first on, over which the scaling and the mean function are computed."""
TASKS_AT_ONCE = 100
"""The number of tasks whose points enter the moments together; one at a time, the sums would cost more than the draws."""


class Pool(NamedTuple):
    """One task in raw units: its coefficients [k] and the points [p, dim] from which its two sets are drawn."""

    coefficients: Array
    support_x: Array
    query_x: Array


class SyntheticFamily:
    """The tasks of a formula. Each of a fixed number of training tasks has pools of points, from which every meta-iteration draws
    anew; `train_tasks=None` draws new tasks every time. Each task has its own random generator, so tasks are computed when needed
    and take no memory."""

    objective = REGRESSION
    out_features = 1
    outputs: ClassVar = ["y"]
    picture = None
    counts: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        formula: Formula,
        spec: SyntheticFamilySpec,
        train_tasks: int | None,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._formula, self._spec, self._train_tasks = formula, spec, train_tasks
        self._seed, self._dtype, self._device = seed, dtype, device
        self._queries = POOL if spec.queries == "all" else spec.queries
        self._pool = lru_cache(maxsize=256)(self._drawn_pool)
        self.in_features = formula.dim
        self.inputs = [f"x{i + 1}" for i in range(formula.dim)]
        self.scaling = self._fitted_scaling()

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        if self._train_tasks is None:
            chosen = np.arange(iteration * size, (iteration + 1) * size)
        else:
            chosen = random.choice(self._train_tasks, size, replace=size > self._train_tasks)
        support, query = [], []
        for task in chosen:
            pool = self._pool("train", int(task))
            support.append(self._rows(pool, _some(random, pool.support_x, self._spec.shots)))
            query.append(self._rows(pool, _some(random, pool.query_x, self._queries)))
        return self._tasks(support, query)

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        pools = [self._pool(split, task) for task in range(min(size, self._spec.test_tasks))]
        support = [self._rows(pool, pool.support_x[: self._spec.shots]) for pool in pools]
        query = [self._rows(pool, self._test_points) for pool in pools]
        return self._tasks(support, query)

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        tasks = min(size, self._spec.test_tasks)
        mean = torch.from_numpy(self.scaling.standardise_y(self._mean_function)).to(self._device, self._dtype)
        return {"zero": torch.zeros_like(mean).repeat(tasks, 1, 1), "population_mean": mean.repeat(tasks, 1, 1)}

    @cached_property
    def _test_points(self) -> Array:
        """The points [m, dim] at which every test and validation task is evaluated."""
        return judged_points(self._formula.dim, self._formula.low, self._formula.high)

    @cached_property
    def _mean_function(self) -> Array:
        """The mean [m, 1] over training tasks of the values at the test points."""
        total = np.zeros((len(self._test_points), 1))
        for task in range(self._population):
            total += self._rows(self._drawn_pool("train", task), self._test_points)[1]
        return total / self._population

    @property
    def _population(self) -> int:
        return POPULATION if self._train_tasks is None else min(self._train_tasks, POPULATION)

    def _drawn_pool(self, split: str, task: int) -> Pool:
        random = generator(self._seed, split, task)
        least = 0 if self._train_tasks is None else POOL
        sizes = (max(self._spec.shots, least), max(self._queries, least))
        low, high, dim = self._formula.low, self._formula.high, self._formula.dim
        coefficients = self._formula.draw(random)
        return Pool(coefficients, *(random.uniform(low, high, (size, dim)) for size in sizes))

    def _rows(self, pool: Pool, x: Array) -> tuple[Array, Array]:
        """The raw inputs x [n, dim] and the task's values [n, 1] at them."""
        return x, self._formula(pool.coefficients, x)[:, None]

    def _fitted_scaling(self) -> Scaling:
        x_moments, y_moments = Moments(), Moments()
        for first in range(0, self._population, TASKS_AT_ONCE):
            pools = [
                self._drawn_pool("train", task) for task in range(first, min(first + TASKS_AT_ONCE, self._population))
            ]
            rows = [self._rows(pool, x) for pool in pools for x in (pool.support_x, pool.query_x)]
            x_moments.add(np.concatenate([x for x, _ in rows]))
            y_moments.add(np.concatenate([y for _, y in rows]))
        return Scaling(x_moments.mean, x_moments.std, y_moments.mean, y_moments.std)

    def _tasks(self, support: list[tuple[Array, Array]], query: list[tuple[Array, Array]]) -> Tasks:
        tasks = {}
        for rows, sets in (("support", support), ("query", query)):
            x = np.stack([x for x, _ in sets])
            y = np.stack([y for _, y in sets])
            tasks[f"{rows}_x"] = self._tensor(self.scaling.standardise_x(x))
            tasks[f"{rows}_y"] = self._tensor(self.scaling.standardise_y(y))
        return tasks

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self._device, self._dtype)


def _some(random: np.random.Generator, points: Array, size: int) -> Array:
    """A random choice of `size` of the points, without replacement."""
    chosen: Array = points[random.choice(len(points), size, replace=False)]
    return chosen


_FORMULAS: dict[str, Callable[[int], Formula]] = {"cosmixture": CosMixture, "alpine": Alpine, "sinusoid": Sinusoid}


def build(
    spec: CosMixtureSpec | AlpineSpec | SinusoidSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    datasets: Mapping[str, Path],  # noqa: ARG001 - every family is built alike
) -> SyntheticFamily:
    """The spec's task family."""
    formula = _FORMULAS[spec.kind](getattr(spec, "dim", 1))
    return SyntheticFamily(formula, spec, spec.train_tasks, seed=seed, dtype=dtype, device=device)
