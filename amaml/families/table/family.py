"""The task family of a user's own table: each row is a point, one column names its task, others are its inputs and targets.

A hash of their value, or a column, assigns tasks to training, validation and test. The seed doesn't, so that an initialization
from which another run starts has never seen that run's test tasks, and adding tasks moves none of the others. Inputs and
regression targets are standardised by the training tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amaml.families.base import DataError, Split, Tasks
from amaml.families.scaling import Array, Moments, Scaling
from amaml.families.table import file
from amaml.families.table.rows import Rows, read_rows
from amaml.families.table.spec import TableSpec
from amaml.families.upload import BadLine
from amaml.objectives import CLASSIFICATION, REGRESSION
from amaml.randomness import generator

Integers = NDArray[np.int64]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

_RIDGE = 1e-6
"""The ridge penalty of the pooled linear baseline, large enough for linearly dependent columns."""


class TableFamily:
    """The tasks of a table that have at least shots + 1 rows each."""

    picture = None

    def __init__(self, rows: Rows, spec: TableSpec, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._spec, self._seed, self._dtype, self._device = spec, seed, dtype, device
        self._classifies = rows.classes is not None
        self.objective = CLASSIFICATION if self._classifies else REGRESSION
        self.inputs, self.outputs = rows.inputs, rows.classes or list(spec.targets)
        self.in_features, self.out_features = len(self.inputs), len(self.outputs)
        self._members = members(rows, spec.shots)
        left_out = len(set(rows.tasks.tolist())) - len(self._members)
        self._tasks_of = split_tasks(list(self._members), rows, spec)
        self.counts = {f"tasks_{part}": len(own) for part, own in self._tasks_of.items()}
        self.counts["tasks_left_out"] = left_out
        for part in ("train", "test"):
            self._check_part(part)
        self.scaling = self._fitted_scaling(rows)
        self._x: Array = self.scaling.standardise_x(rows.x)
        self._y: Array = self.scaling.standardise_y(rows.y)

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        among = self._tasks_of["train"]
        chosen = random.choice(len(among), size, replace=size > len(among))
        return self._batch(np.stack([self._drawn(among[i], random) for i in chosen]))

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        return self._batch(self._unseen(split, size))

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """The baselines. Regression: `zero`, the mean of the support rows, and one linear model of all training tasks.
        Classification: the frequencies of the classes in the training tasks, and in the support rows."""
        rows = self._unseen(split, size)
        support, query = rows[:, : self._spec.shots], rows[:, self._spec.shots :]
        shape = (*query.shape, self.out_features)
        task_mean = np.broadcast_to(self._y[support].mean(axis=1, keepdims=True), shape)
        if self._classifies:
            found = {
                "majority": np.broadcast_to(self._y[self._training_rows].mean(axis=0), shape),
                "task_majority": task_mean,
            }
        else:
            found = {"zero": np.zeros(shape), "task_mean": task_mean, "pooled_linear": self._line(self._x[query])}
        return {name: self._tensor(values) for name, values in found.items()}

    def _line(self, x: Array) -> Array:
        weights, offset = self._pooled_line
        values: Array = x @ weights + offset
        return values

    @cached_property
    def _pooled_line(self) -> tuple[Array, Array]:
        """The weights [d, o] and offset [o] of ridge regression over the rows of the training tasks."""
        x, y = self._x[self._training_rows], self._y[self._training_rows]
        middle, offset = x.mean(axis=0), y.mean(axis=0)
        centred = x - middle
        ridge = _RIDGE * len(x) * np.eye(x.shape[1])
        weights: Array = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (y - offset))
        return weights, offset - middle @ weights

    # Which rows a task is made of

    def _unseen(self, split: Split, size: int) -> Integers:
        """The rows [B, shots + queries] of the split's first tasks: independent draws, the same in every evaluation."""
        self._check_part(split)
        tasks = self._tasks_of[split][:size]
        return np.stack([self._drawn(task, generator(self._seed, f"rows/{task}")) for task in tasks])

    def _drawn(self, task: str, random: np.random.Generator) -> Integers:
        """Random rows of the task: first the support set, then the query set, which repeats rows where there are too few."""
        own = random.permutation(self._members[task])
        shots = self._spec.shots
        return np.concatenate((own[:shots], np.resize(own[shots:], self._spec.queries)))

    def _batch(self, rows: Integers) -> Tasks:
        shots = self._spec.shots
        support, query = rows[:, :shots], rows[:, shots:]
        return {
            "support_x": self._tensor(self._x[support]),
            "support_y": self._tensor(self._y[support]),
            "query_x": self._tensor(self._x[query]),
            "query_y": self._tensor(self._y[query]),
        }

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, self._dtype)

    # What the training tasks say

    @cached_property
    def _training_rows(self) -> Integers:
        return np.sort(np.concatenate([self._members[task] for task in self._tasks_of["train"]]))

    def _fitted_scaling(self, rows: Rows) -> Scaling:
        """The scaling of numeric columns by the training tasks. One-hot columns, classes and constant inputs aren't scaled.
        Raises DataError for a constant target."""
        x, y = Moments(), Moments()
        x.add(rows.x[self._training_rows])
        y.add(rows.y[self._training_rows])
        x_mean = tuple(0.0 if hot else mean for hot, mean in zip(rows.one_hot, x.mean, strict=True))
        x_std = tuple(1.0 if hot or std == 0 else std for hot, std in zip(rows.one_hot, x.std, strict=True))
        if self._classifies:
            return Scaling(x_mean, x_std, (0.0,), (1.0,))
        for name, mean, std in zip(self.outputs, y.mean, y.std, strict=True):
            if std == 0:
                raise DataError(
                    f"data set {self._spec.dataset}: {name!r} is {mean:g} in every row of the training tasks, so there is "
                    "nothing to learn: name a target that differs"
                )
        return Scaling(x_mean, x_std, y.mean, y.std)

    def _check_part(self, part: Part) -> None:
        if self._tasks_of[part]:
            return
        found = ", ".join(f"{len(own)} {name}" for name, own in self._tasks_of.items())
        remedy = (
            f"upload more tasks, raise family.{part}_share, or name a column that says it as family.split"
            if self._spec.split is None and part != "train"
            else "upload more tasks with enough rows"
            + (f", or say {part} in column {self._spec.split!r}" if self._spec.split else "")
        )
        raise DataError(
            f"data set {self._spec.dataset}: of its tasks with at least shots + 1 = {self._spec.shots + 1} rows "
            f"({self.counts['tasks_left_out']} have fewer and are left out) none is for {part} ({found}): {remedy}, or lower "
            "family.shots"
        )


def members(rows: Rows, shots: int) -> dict[str, Integers]:
    """The row numbers of each task that has at least shots + 1 rows, in the order of the tasks' names."""
    names, owners = np.unique(rows.tasks.astype(str), return_inverse=True)
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=len(names)))
    parts = np.split(order, ends[:-1])
    return {str(name): own for name, own in zip(names, parts, strict=True) if len(own) > shots}


def split_tasks(tasks: list[str], rows: Rows, spec: TableSpec) -> dict[Part, list[str]]:
    """The tasks of each part, which are disjoint, in the order of the tasks' hashes."""
    ordered = sorted(tasks, key=_place)
    if rows.parts is None:
        parts = {task: _part(_place(task), spec) for task in ordered}
    else:
        parts = dict(zip(rows.tasks.tolist(), rows.parts.tolist(), strict=True))
    return {part: [task for task in ordered if parts[task] == part] for part in PARTS}


def _place(task: str) -> float:
    """The hash of the task's name as a number in [0, 1), which is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"task/{task}".encode()).digest()[:7], "big") / 2**56


def _part(place: float, spec: TableSpec) -> Part:
    if place < spec.test_share:
        return "test"
    return "validation" if place < spec.test_share + spec.validation_share else "train"


def build(
    spec: TableSpec, *, dtype: torch.dtype, device: torch.device, seed: int, datasets: Mapping[str, Path]
) -> TableFamily:
    """The family of the file that `datasets` has under the spec's data set id. Raises DataError if the file is missing, invalid,
    or unsuitable for the spec."""
    path = datasets.get(str(spec.dataset))
    if path is None:
        raise DataError(f"data set {spec.dataset} was not given: name its file by its id in datasets")
    try:
        rows = read_rows(path, spec)
    except BadLine as error:
        place = error.detail if error.line and file.format_of(path) == "parquet" else str(error)
        raise DataError(f"data set {spec.dataset}: {place}") from error
    return TableFamily(rows, spec, seed=seed, dtype=dtype, device=device)
