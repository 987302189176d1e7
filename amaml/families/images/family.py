"""Few-shot classification of labelled images (Lake et al. 2015; Vinyals et al., arXiv 1606.04080): a task is to tell some
classes apart from some images of each.

Classes are set apart for validation and test by a hash of their label, not by the seed: so an initialization that another
run starts from has never seen that run's test classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amaml.families.base import DataError, Split, Tasks
from amaml.families.images import file
from amaml.families.images.file import BadImages, Images
from amaml.families.images.spec import DIGITS, ImagesSpec
from amaml.families.scaling import Array, Moments, Scaling
from amaml.objectives import CLASSIFICATION
from amaml.randomness import generator

Integers = NDArray[np.int64]

_BLOCK = 4096
"""Images whose pixels are looked at together."""


class ImagesFamily:
    """Episodes of a data set of images. An episode reads the images that it draws: the file is mapped, not held."""

    objective = CLASSIFICATION

    def __init__(self, data: Images, spec: ImagesSpec, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pixels, self._spec, self._seed, self._dtype, self._device = data.images, spec, seed, dtype, device
        members = {int(label): np.flatnonzero(data.labels == label) for label in np.unique(data.labels)}
        self._members = {label: own for label, own in members.items() if len(own) >= spec.shots + spec.queries}
        self._classes = split_classes(list(self._members), len(members), spec)
        self.counts = {f"classes_{split}": len(labels) for split, labels in self._classes.items()}
        self.counts["classes_left_out"] = len(members) - len(self._members)
        channels, height, width = self._pixels.shape[1:]
        self.picture = (channels, height, width)
        self.in_features = channels * height * width
        self.out_features = spec.ways
        self.inputs = [f"picture of {channels} × {height} × {width} (channels, height, width)"]
        self.outputs = [f"class {way + 1} of the task" for way in range(spec.ways)]
        self.scaling = self._fitted_scaling()

    def training_batch(self, iteration: int, size: int) -> Tasks:
        random = generator(self._seed, "meta-batch", iteration)
        return self._tasks([self._episode("train", random) for _ in range(size)])

    def evaluation_batch(self, split: Split, size: int) -> Tasks:
        if not self._classes[split]:
            raise DataError(
                f"data set {self._spec.dataset}: no class is left for {split}: set family.{split}_classes to at least "
                f"{self._spec.ways}, lower family.ways, or set evaluation.select to last"
            )
        tasks = range(min(size, self._spec.test_tasks))
        return self._tasks([self._episode(split, generator(self._seed, split, task)) for task in tasks])

    def baselines(self, split: Split, size: int) -> dict[str, Tensor]:
        """`nearest_class_mean`: the class whose mean support picture is nearest, in the distance of pixels."""
        tasks = self.evaluation_batch(split, size)
        means = tasks["support_x"].unflatten(1, (self._spec.ways, self._spec.shots)).mean(dim=2)
        return {"nearest_class_mean": -torch.cdist(tasks["query_x"], means)}

    def _episode(self, split: Literal["train", "validation", "test"], random: np.random.Generator) -> Integers:
        """Which images [ways, shots + queries] make a task; a class's place among the ways is drawn too."""
        labels = random.choice(self._classes[split], self._spec.ways, replace=False)
        size = self._spec.shots + self._spec.queries
        return np.stack([random.choice(self._members[int(label)], size, replace=False) for label in labels])

    def _tasks(self, episodes: list[Integers]) -> Tasks:
        """Rows are ordered by class."""
        chosen, shots = np.stack(episodes), self._spec.shots
        classes = torch.eye(self._spec.ways, dtype=self._dtype, device=self._device)
        tasks = {}
        for rows, own in (("support", chosen[:, :, :shots]), ("query", chosen[:, :, shots:])):
            x = self._raw(own.reshape(len(episodes), -1))
            tasks[f"{rows}_x"] = torch.from_numpy(self.scaling.standardise_x(x)).to(self._device, self._dtype)
            tasks[f"{rows}_y"] = classes.repeat_interleave(own.shape[2], dim=0).repeat(len(episodes), 1, 1)
        return tasks

    def _raw(self, chosen: Integers) -> Array:
        """[…] → […, in_features], as the file has them."""
        raw: Array = self._pixels[chosen].reshape(*chosen.shape, -1).astype(np.float64)
        return raw

    def _fitted_scaling(self) -> Scaling:
        """One mean and one standard deviation for all pixels, of the training classes' images."""
        rows = np.sort(np.concatenate([self._members[label] for label in self._classes["train"]]))
        moments = Moments()
        for start in range(0, len(rows), _BLOCK):
            moments.add(self._raw(rows[start : start + _BLOCK]).reshape(-1, 1))
        if not np.isfinite(moments.mean[0]) or not moments.std[0] > 0:
            raise DataError(
                f"data set {self._spec.dataset}: the pixels of the training classes are all alike or not finite, so there is "
                "nothing to learn: upload images that differ"
            )
        return Scaling(moments.mean, moments.std, (0.0,), (1.0,))


def split_classes(
    labels: list[int], among: int, spec: ImagesSpec
) -> dict[Literal["train", "validation", "test"], list[int]]:
    """The labels of each split, disjoint; those for test come first in the order of their hashes. Raises DataError."""
    by_hash = sorted(labels, key=lambda label: hashlib.sha256(f"class/{label}".encode()).digest())
    share = max(spec.ways, round(len(labels) / 5))
    test = share if spec.test_classes is None else spec.test_classes
    fits = test + share + spec.ways <= len(labels)
    validation = (share if fits else 0) if spec.validation_classes is None else spec.validation_classes
    if len(labels) - test - validation < spec.ways:
        raise DataError(
            f"data set {spec.dataset}: {len(labels)} of its {among} classes have the {spec.shots + spec.queries} images that "
            f"shots + queries ask for; {test} test classes, {validation} validation classes and at least {spec.ways} (ways) to "
            "train on are more than that: lower family.ways, family.shots, family.queries, family.test_classes or "
            "family.validation_classes"
        )
    return {
        "test": by_hash[:test],
        "validation": by_hash[test : test + validation],
        "train": by_hash[test + validation :],
    }


def digits() -> Images:
    """1797 handwritten digits of scikit-learn (Alpaydin, Kaynak 1998), 8 × 8, grey values 0…16: no network is asked."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a second, which other families needn't spend

    found: Any = load_digits()
    return Images(found.images[:, None], np.asarray(found.target, dtype=np.int64))


def build(
    spec: ImagesSpec, *, dtype: torch.dtype, device: torch.device, seed: int, datasets: Mapping[str, Path]
) -> ImagesFamily:
    """The family of the file that `datasets` has under the spec's data set id, or of the digits. Raises DataError."""
    if spec.dataset == DIGITS:
        return ImagesFamily(digits(), spec, seed=seed, dtype=dtype, device=device)
    path = datasets.get(spec.dataset)
    if path is None:
        raise DataError(f"data set {spec.dataset} was not given: name its file by its id in datasets")
    try:
        images = file.read(path)
    except BadImages as error:
        raise DataError(f"data set {spec.dataset}: {error}") from error
    return ImagesFamily(images, spec, seed=seed, dtype=dtype, device=device)
