"""Few-shot classification of labelled images (Lake et al. 2015; Vinyals et al., arXiv 1606.04080). A task is to distinguish a few
classes, given a few images of each.

A hash of their label, not the seed, assigns classes to training, validation and test: so an initialization from which another run
starts has never seen that run's test classes.
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
"""The number of images whose pixels enter the moments together."""


class ImagesFamily:
    """The tasks of a data set of images. The file is memory-mapped: a task reads only the images that it draws."""

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
        """The baseline `nearest_class_mean`: it predicts the class whose mean support image is nearest in pixel distance."""
        tasks = self.evaluation_batch(split, size)
        means = tasks["support_x"].unflatten(1, (self._spec.ways, self._spec.shots)).mean(dim=2)
        return {"nearest_class_mean": -torch.cdist(tasks["query_x"], means)}

    def _episode(self, split: Literal["train", "validation", "test"], random: np.random.Generator) -> Integers:
        """The numbers [ways, shots + queries] of the images of a random task; the order of its classes is random too."""
        labels = random.choice(self._classes[split], self._spec.ways, replace=False)
        size = self._spec.shots + self._spec.queries
        return np.stack([random.choice(self._members[int(label)], size, replace=False) for label in labels])

    def _tasks(self, episodes: list[Integers]) -> Tasks:
        """The standardised tasks made of these images; their rows are ordered by class."""
        chosen, shots = np.stack(episodes), self._spec.shots
        classes = torch.eye(self._spec.ways, dtype=self._dtype, device=self._device)
        tasks = {}
        for rows, own in (("support", chosen[:, :, :shots]), ("query", chosen[:, :, shots:])):
            x = self._raw(own.reshape(len(episodes), -1))
            tasks[f"{rows}_x"] = torch.from_numpy(self.scaling.standardise_x(x)).to(self._device, self._dtype)
            tasks[f"{rows}_y"] = classes.repeat_interleave(own.shape[2], dim=0).repeat(len(episodes), 1, 1)
        return tasks

    def _raw(self, chosen: Integers) -> Array:
        """The raw pixels […, in_features] of the images with the numbers `chosen` […]."""
        raw: Array = self._pixels[chosen].reshape(*chosen.shape, -1).astype(np.float64)
        return raw

    def _fitted_scaling(self) -> Scaling:
        """The scaling by one mean and one standard deviation of all pixels of the training classes. Raises DataError if they
        don't vary or aren't finite."""
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
    """The labels of each split, which are disjoint: in the order of their hashes, test classes come first, then validation
    classes. Raises DataError if there are too few classes."""
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
    """The 1797 handwritten digits that come with scikit-learn (Alpaydin, Kaynak 1998): 8 × 8 pixels with grey values 0…16."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - importing it takes a second, which other families needn't spend

    found: Any = load_digits()
    return Images(found.images[:, None], np.asarray(found.target, dtype=np.int64))


def build(
    spec: ImagesSpec, *, dtype: torch.dtype, device: torch.device, seed: int, datasets: Mapping[str, Path]
) -> ImagesFamily:
    """The family of the file that `datasets` has under the spec's data set id, or of the digits. Raises DataError if the file is
    missing, invalid, or unsuitable for the spec."""
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
