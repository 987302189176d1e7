"""Collaborative filtering (arXiv 2110.08432, section 6.2): each user is a task, and the network maps a one-hot item to a rating.

The features are the `items` most-rated items of the whole file; users with at least shots + queries ratings of them are tasks.
The seed decides which users are for test and validation; ratings are standardised by those of the training users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amaml.families.base import DataError, Split, Tasks
from amaml.families.ratings import file
from amaml.families.ratings.spec import RatingsSpec
from amaml.families.scaling import Array, Moments, Scaling
from amaml.families.upload import BadLine
from amaml.objectives import REGRESSION
from amaml.randomness import generator

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """The ratings of the kept items by the users who can be tasks, grouped by user."""

    names: list[str]
    """The names of the kept items, those with the most ratings first, in the order of their names where the counts are equal."""
    starts: Integers
    """The first row of each user, and the number of rows [users + 1]: user u's ratings are rows[starts[u] : starts[u + 1]]."""
    items: Integers
    """The item of each row [rows], as an index into `names`."""
    values: Array
    """The raw rating of each row [rows]."""

    @property
    def users(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def owners(self) -> Integers:
        """The user of each row [rows]."""
        return np.repeat(np.arange(self.users), np.diff(self.starts))


@dataclass(frozen=True)
class Effects:
    """The model rating ≈ item effect + user effect, both shrunk towards 0 by an amount estimated from the data."""

    items: Array
    """The shrunk effect of each item [items], standardised."""
    prior: float
    """The number of zero ratings that are added to a user's own to shrink their mean; infinite where users don't differ."""


class RatingsFamily:
    """The users of a ratings file as tasks. Only the file's ratings are in memory; items become one-hot when a batch is made."""

    objective = REGRESSION
    out_features = 1
    outputs: ClassVar = ["rating"]
    picture = None

    def __init__(self, table: Table, spec: RatingsSpec, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._table, self._spec, self._seed, self._dtype, self._device = table, spec, seed, dtype, device
        self.inputs = table.names
        self.in_features = len(table.names)
        self._users = _split(table, spec, seed)
        self.counts = {f"tasks_{split}": len(users) for split, users in self._users.items()}
        moments = Moments()
        moments.add(table.values[self._training_rows, None])
        if moments.std[0] == 0:
            raise DataError(
                f"data set {spec.dataset}: every rating of the training users is {moments.mean[0]:g}, so there is nothing to "
                "learn: upload ratings that differ"
            )
        self.scaling = Scaling((0.0,) * self.in_features, (1.0,) * self.in_features, moments.mean, moments.std)
        self._values: Array = self.scaling.standardise_y(table.values)

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        among = self._users["train"]
        users = random.choice(among, size, replace=size > len(among))
        return self._tasks(np.stack([self._drawn_rows(user, random) for user in users]))

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        return self._tasks(self._evaluation_rows(split, size))

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """The baselines: `zero`, the user's mean over the support set, the item's mean over the training users, and the sum of
        both effects, shrunk."""
        rows = self._evaluation_rows(split, size)
        support, query = rows[:, : self._spec.shots], rows[:, self._spec.shots :]
        items, values = self._table.items, self._values
        effects = self._effects
        left = values[support] - effects.items[items[support]]
        user_effect = left.sum(axis=1, keepdims=True) / (self._spec.shots + effects.prior)
        predicted = {
            "zero": np.zeros(query.shape),
            "user_mean": np.broadcast_to(values[support].mean(axis=1, keepdims=True), query.shape),
            "item_mean": self._item_means[items[query]],
            "user_item_effects": effects.items[items[query]] + user_effect,
        }
        return {name: self._tensor(column[..., None]) for name, column in predicted.items()}

    # Which rows a task is made of

    def _evaluation_rows(self, split: Split, size: int) -> Integers:
        """The rows [B, shots + queries] of the split's first users: independent draws, the same in every evaluation."""
        users = self._users[split][:size]
        return np.stack([self._drawn_rows(user, generator(self._seed, "rows", int(user))) for user in users])

    def _drawn_rows(self, user: int, random: np.random.Generator) -> Integers:
        """Random distinct rows of the user: first the support set, then the query set."""
        start, end = self._table.starts[user : user + 2]
        rows: Integers = start + random.permutation(int(end - start))[: self._spec.shots + self._spec.queries]
        return rows

    def _tasks(self, rows: Integers) -> Tasks:
        one_hot = torch.zeros(*rows.shape, self.in_features, dtype=self._dtype)
        one_hot.scatter_(2, torch.from_numpy(self._table.items[rows])[..., None], 1)
        x, y = one_hot.to(self._device), self._tensor(self._values[rows][..., None])
        shots = self._spec.shots
        return {
            "support_x": x[:, :shots].contiguous(),
            "support_y": y[:, :shots].contiguous(),
            "query_x": x[:, shots:].contiguous(),
            "query_y": y[:, shots:].contiguous(),
        }

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, self._dtype)

    # What the training users say

    @property
    def _training_rows(self) -> NDArray[np.bool_]:
        return np.isin(self._table.owners, self._users["train"])

    @cached_property
    def _item_means(self) -> Array:
        """The mean rating of each item by the training users, standardised; 0 for an item that none of them rated."""
        rows = self._training_rows
        sums, counts = _sums(self._table.items[rows], self._values[rows], self.in_features)
        means: Array = sums / np.maximum(counts, 1)
        return means

    @cached_property
    def _effects(self) -> Effects:
        rows = self._training_rows
        items, owners, values = self._table.items[rows], self._table.owners[rows], self._values[rows]
        sums, counts = _sums(items, values, self.in_features)
        effects = sums / (counts + shrinkage(items, values, self.in_features))
        return Effects(effects, shrinkage(owners, values - effects[items], self._table.users))


def build(
    spec: RatingsSpec, *, dtype: torch.dtype, device: torch.device, seed: int, datasets: Mapping[str, Path]
) -> RatingsFamily:
    """The family of the file that `datasets` has under the spec's data set id. Raises DataError if the file is missing, invalid,
    or unsuitable for the spec."""
    path = datasets.get(str(spec.dataset))
    if path is None:
        raise DataError(f"data set {spec.dataset} was not given: name its file by its id in datasets")
    try:
        table = read_table(file.read(path), spec)
    except BadLine as error:
        raise DataError(f"data set {spec.dataset}: {error}") from error
    return RatingsFamily(table, spec, seed=seed, dtype=dtype, device=device)


def read_table(ratings: Iterable[tuple[str, str, float]], spec: RatingsSpec) -> Table:
    """The table of a file's (user, item, rating). It doesn't depend on the order of the ratings, except that the last of several
    ratings of one item by one user counts. Raises DataError if there are too few items, or users with enough ratings."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rated: dict[tuple[int, int], float] = {}
    for user, item, rating in ratings:
        rated[users.setdefault(user, len(users)), items.setdefault(item, len(items))] = rating
    pairs = np.array(list(rated), dtype=np.int64).reshape(-1, 2)
    values = np.fromiter(rated.values(), dtype=np.float64, count=len(rated))
    if len(items) < spec.items:
        raise DataError(
            f"data set {spec.dataset} rates {len(items)} items, family.items asks for {spec.items}: lower family.items"
        )
    item_names = list(items)
    counts = np.bincount(pairs[:, 1], minlength=len(items))
    kept = sorted(range(len(items)), key=lambda item: (-counts[item], item_names[item]))[: spec.items]
    index = np.full(len(items), -1)
    index[kept] = np.arange(len(kept))
    pairs[:, 1] = index[pairs[:, 1]]
    needed = spec.shots + spec.queries
    enough = np.bincount(pairs[pairs[:, 1] >= 0, 0], minlength=len(users)) >= needed
    rows = (pairs[:, 1] >= 0) & enough[pairs[:, 0]]
    rank = np.empty(len(users), dtype=np.int64)
    rank[sorted(range(len(users)), key=list(users).__getitem__)] = np.arange(len(users))
    owners, own_items, values = rank[pairs[rows, 0]], pairs[rows, 1], values[rows]
    order = np.lexsort((own_items, owners))
    _, sizes = np.unique(owners, return_counts=True)
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    table = Table([item_names[item] for item in kept], starts, own_items[order], values[order])
    _check_users(table, spec, len(users))
    return table


def shrinkage(groups: Integers, values: Array, number: int) -> float:
    """The number of zero values to be added to a group to shrink its mean: the variance within groups divided by that between
    them, by the method of moments. It is infinite where groups differ by no more than chance."""
    sums, counts = _sums(groups, values, number)
    seen = counts > 0
    means = np.zeros(number)
    means[seen] = sums[seen] / counts[seen]
    freedom = len(values) - int(seen.sum())
    if freedom <= 0:
        return float("inf")
    within = float(np.square(values - means[groups]).sum() / freedom)
    between = float(np.square(means[seen]).mean() - (within / counts[seen]).mean())
    return within / between if between > 0 else float("inf")


def _sums(groups: Integers, values: Array, number: int) -> tuple[Array, Integers]:
    """The sum and the count of the values of each group, two arrays [number]."""
    sums = np.bincount(groups, values, minlength=number).astype(np.float64)
    counts: Integers = np.bincount(groups, minlength=number)
    return sums, counts


def _split(table: Table, spec: RatingsSpec, seed: int) -> dict[str, Integers]:
    """The users of each split. Validation has a tenth of the users left by test, but at least one and at most as many as test."""
    order: Integers = generator(seed, "users").permutation(table.users)
    test, rest = order[: spec.test_tasks], order[spec.test_tasks :]
    held = _validation_users(spec, len(rest))
    return {"test": test, "validation": rest[:held], "train": rest[held:][: spec.train_tasks]}


def _validation_users(spec: RatingsSpec, rest: int) -> int:
    return max(1, min(spec.test_tasks, rest // 10))


def _check_users(table: Table, spec: RatingsSpec, users: int) -> None:
    training = spec.train_tasks or 1
    rest = table.users - spec.test_tasks
    if rest - _validation_users(spec, max(rest, 0)) < training:
        raise DataError(
            f"data set {spec.dataset}: {table.users} of its {users} users have the {spec.shots + spec.queries} ratings among "
            f"the {spec.items} most-rated items that shots + queries ask for; {spec.test_tasks} test users, at least "
            f"{training} training users and some for validation are more than that: lower family.shots, family.queries, "
            "family.test_tasks or family.train_tasks, or raise family.items"
        )
