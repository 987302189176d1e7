"""The tasks themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amaml.families.base import Split, Tasks
from amaml.families.scaling import Moments, Scaling
from amaml.models.losses import regression_losses
from amaml.objectives import NRMSE, Objective
from amaml.randomness import generator
from springs.reader import rows
from springs.spec import SpringsSpec


def objective(spec: SpringsSpec) -> Objective:
    return Objective("springs", regression_losses, NRMSE)


class SpringsFamily:
    in_features = out_features = 1
    inputs, outputs = ["time"], ["position"]
    picture = None

    def __init__(self, springs: list[np.ndarray], spec: SpringsSpec, seed: int, like: Tensor) -> None:
        """`springs`: of each its rows (time, position)."""
        self.objective = objective(spec)
        self._spec, self._seed, self._like = spec, seed, like
        self._test, self._train = springs[: spec.test_springs], springs[spec.test_springs :]
        self.counts = {"tasks_train": len(self._train)}
        x, y = Moments(), Moments()
        for spring in self._train:
            x.add(spring[:, :1])
            y.add(spring[:, 1:])
        self.scaling = Scaling(x.mean, x.std, y.mean, y.std)

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        chosen = random.choice(len(self._train), size)
        return self._tasks([random.permutation(self._train[spring]) for spring in chosen])

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        return self._tasks(self._test[:size])

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        return {"zero": torch.zeros_like(self.evaluation_batch(split, size)["query_y"])}

    def _tasks(self, springs: list[np.ndarray]) -> Tasks:
        shots, tasks = self._spec.shots, {}
        for name, part in (("support", slice(0, shots)), ("query", slice(shots, 2 * shots))):
            own = np.stack([spring[part] for spring in springs])
            tasks[f"{name}_x"] = torch.from_numpy(self.scaling.standardise_x(own[..., :1])).to(self._like)
            tasks[f"{name}_y"] = torch.from_numpy(self.scaling.standardise_y(own[..., 1:])).to(self._like)
        return tasks


def build(
    spec: SpringsSpec, *, dtype: torch.dtype, device: torch.device, seed: int, datasets: Mapping[str, Path]
) -> SpringsFamily:
    springs: dict[str, list[tuple[float, float]]] = {}
    for row in rows(datasets[str(spec.dataset)]):
        assert isinstance(row, tuple)
        springs.setdefault(row[0], []).append(row[1:])
    return SpringsFamily(
        [np.array(own) for own in springs.values()], spec, seed, torch.empty(0, dtype=dtype, device=device)
    )
