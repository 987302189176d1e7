"""The images family: episodes, classes apart, scaling, the nearest class mean, what it refuses, and that digits are learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import save_file

import amaml
from amaml.families.base import DataError
from amaml.families.images.family import ImagesFamily, digits, split_classes
from amaml.objectives import accuracy
from amaml.registry import build_family
from amaml.run.training import Training, train
from amaml.spec import ImagesSpec, JobSpec

DATASET = "0198b2a0-0000-7000-8000-000000000001"


def spec(**changes: Any) -> ImagesSpec:
    return ImagesSpec(**({"dataset": DATASET, "ways": 2, "shots": 2, "queries": 3, "test_tasks": 4} | changes))


def build(path: Path | None = None, seed: int = 0, **changes: Any) -> ImagesFamily:
    family = build_family(
        spec(**changes),
        seed=seed,
        dtype=torch.float64,
        device=torch.device("cpu"),
        datasets={} if path is None else {DATASET: path},
    )
    assert isinstance(family, ImagesFamily)
    return family


def write(path: Path, classes: int = 12, of_each: int = 6, shape: tuple[int, ...] = (3, 4, 5)) -> Path:
    """Every image is its own number in its first two pixels, its class in all others."""
    labels = np.arange(classes * of_each) % classes
    images = np.broadcast_to(labels.reshape(-1, *[1] * len(shape)), (len(labels), *shape)).astype(np.uint8).copy()
    images.reshape(len(labels), -1)[:, 0] = np.arange(len(labels)) // classes
    save_file({"images": images, "labels": labels}, path)
    return path


def raw(family: ImagesFamily, x: torch.Tensor) -> torch.Tensor:
    return (x * family.scaling.x_std[0] + family.scaling.x_mean[0]).round()


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_episodes_hold_distinct_images_of_distinct_classes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    family = build(write(tmp_path / "i.safetensors", shape=shape), ways=3)
    assert family.picture == ((1, *shape) if len(shape) == 2 else shape)
    assert (family.in_features, family.out_features) == (np.prod(shape), 3)
    tasks = family.training_batch(0, 5)
    for task in range(5):
        seen: dict[int, set[tuple[int, int]]] = {}
        for part, shots in (("support", 2), ("query", 3)):
            pixels, way = raw(family, tasks[f"{part}_x"][task]), tasks[f"{part}_y"][task].argmax(dim=1)
            assert tasks[f"{part}_y"][task].sum(dim=0).tolist() == [shots] * 3
            for image, own in zip(pixels.tolist(), way.tolist(), strict=True):
                assert set(image[1:]) == {image[-1]}
                seen.setdefault(own, set()).add((int(image[-1]), int(image[0])))
        assert [len(images) for images in seen.values()] == [5] * 3  # none is in both sets
        labels = [{label for label, _ in images} for images in seen.values()]
        assert all(len(one) == 1 for one in labels)
        assert len(set.union(*labels)) == 3


def test_a_class_takes_every_place_among_the_ways(tmp_path: Path) -> None:
    family = build(write(tmp_path / "i.safetensors"))
    places = {
        (int(raw(family, x)[0, -1]), 0 if y[0, 0] else 1)
        for i in range(30)
        for x, y in zip(*(family.training_batch(i, 4)[f"support_{a}"] for a in "xy"), strict=True)
    }
    assert places == {(label, 0) for label in family._classes["train"]}  # rows are ordered by the place


def test_splits_are_disjoint_and_the_same_for_every_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "i.safetensors")
    one, other = build(path), build(path, seed=9)
    assert one._classes == other._classes
    assert [len(one._classes[part]) for part in ("train", "validation", "test")] == [8, 2, 2]  # type: ignore[index]
    labels = [label for own in one._classes.values() for label in own]
    assert sorted(labels) == list(range(12))
    for split in ("test", "validation"):
        batch = one.evaluation_batch(split, 4)  # type: ignore[arg-type]
        drawn = set(raw(one, batch["support_x"])[..., -1].flatten().int().tolist())
        assert drawn <= set(one._classes[split])  # type: ignore[index]
    assert not torch.equal(one.training_batch(0, 2)["support_x"], other.training_batch(0, 2)["support_x"])
    again = build(path)
    assert torch.equal(one.training_batch(3, 2)["query_x"], again.training_batch(3, 2)["query_x"])
    assert torch.equal(one.evaluation_batch("test", 2)["query_x"], one.evaluation_batch("test", 4)["query_x"][:2])


@pytest.mark.parametrize(
    ("labels", "fields", "sizes"),
    [
        (10, {"ways": 3}, (4, 3, 3)),
        (10, {"ways": 5}, (5, 0, 5)),  # too few for validation
        (100, {}, (60, 20, 20)),
        (100, {"test_classes": 7, "validation_classes": 3}, (90, 3, 7)),
        (10, {"validation_classes": 0}, (8, 0, 2)),
    ],
)
def test_sizes_of_splits(labels: int, fields: dict[str, int], sizes: tuple[int, int, int]) -> None:
    found = split_classes(list(range(labels)), labels, spec(**fields))
    assert tuple(len(found[part]) for part in ("train", "validation", "test")) == sizes  # type: ignore[index]


def test_small_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = np.concatenate((np.arange(60) % 12, [12, 12, 12, 12]))
    images = np.random.default_rng(0).integers(0, 9, (64, 2, 2), dtype=np.uint8)
    save_file({"images": images, "labels": labels}, tmp_path / "i.safetensors")
    family = build(tmp_path / "i.safetensors")
    assert family.counts == {
        "classes_test": 2, "classes_validation": 2, "classes_train": 8, "classes_left_out": 1,
    }  # fmt: skip


def test_scaling_is_one_number_of_the_training_classes(tmp_path: Path) -> None:
    family = build(write(tmp_path / "i.safetensors"))
    data = digits_like(family)
    np.testing.assert_allclose(family.scaling.x_mean, [data.mean()])
    np.testing.assert_allclose(family.scaling.x_std, [data.std()])


def digits_like(family: ImagesFamily) -> np.ndarray[Any, Any]:
    rows = np.concatenate([family._members[label] for label in family._classes["train"]])
    return family._pixels[rows].astype(float)


def test_nearest_class_mean_by_hand() -> None:
    family = build(dataset="digits", ways=3, shots=5, queries=10, test_tasks=30)
    tasks = family.evaluation_batch("test", 30)
    found = family.baselines("test", 30)["nearest_class_mean"]
    means = [tasks["support_x"][4][tasks["support_y"][4].argmax(dim=1) == way].mean(dim=0) for way in range(3)]
    distances = [(tasks["query_x"][4][7] - mean).norm().item() for mean in means]
    assert found[4, 7].tolist() == pytest.approx([-distance for distance in distances])
    assert accuracy(found, tasks["query_y"]).mean() > 0.85


def test_the_digits_are_there_without_a_network() -> None:
    data = digits()
    assert data.images.shape == (1797, 1, 8, 8)
    assert set(data.labels.tolist()) == set(range(10))
    assert build(dataset="digits").counts["classes_left_out"] == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ways": 6}, "12 of its 12 classes have the 5 images .* 6 test classes, 0 validation classes and at least 6"),
        ({"ways": 7}, "lower family.ways"),
        ({"shots": 4}, "0 of its 12 classes have the 7 images"),
    ],
)
def test_data_that_cannot_serve_the_spec(tmp_path: Path, fields: dict[str, int], said: str) -> None:
    path = write(tmp_path / "i.safetensors")
    if fields == {"ways": 6}:
        build(path, **fields)  # six to train on, six for test: just enough
        fields, said = {"ways": 6, "validation_classes": 6}, "6 test classes, 6 validation classes"
    with pytest.raises(DataError, match=said) as caught:
        build(path, **fields)
    assert DATASET in str(caught.value)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "i.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no safetensors file"):
        build(tmp_path / "i.safetensors")
    save_file({"images": np.full((72, 2, 2), 7.0), "labels": np.arange(72) % 12}, tmp_path / "same.safetensors")
    with pytest.raises(DataError, match="all alike or not finite"):
        build(tmp_path / "same.safetensors")
    with pytest.raises(DataError, match="was not given"):
        build()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dataset": "letters"}, "'letters' names no data set: give digits, or the id of an uploaded one"),
        ({"ways": 3, "test_classes": 2}, "2 classes make no task of 3 ways"),
        ({"ways": 3, "validation_classes": 1}, "1 classes make no task of 3 ways"),
    ],
)
def test_rules_of_the_spec(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(**fields)


def test_ids_are_kept_in_their_canonical_form() -> None:
    assert spec(dataset=DATASET.upper()).dataset == DATASET == str(UUID(DATASET))


def test_no_validation_class_is_told_before_the_run() -> None:
    parts = {"family": {"kind": "images", "dataset": "digits", "ways": 5}, "evaluation": {"select": "validation"}}
    with pytest.raises(
        DataError, match=r"no class is left for validation: set family\.validation_classes to at least 5"
    ):
        Training.start(JobSpec.model_validate(parts))
    parts["family"]["validation_classes"] = 0
    with pytest.raises(ValidationError, match="validation_classes is 0"):
        JobSpec.model_validate(parts)


def job(model: dict[str, Any], **meta: Any) -> JobSpec:
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "family": {"kind": "images", "dataset": "digits", "validation_classes": 0},
                "model": model,
                "trajectory": {"length": 0.1},
                "solver": {"kind": "euler", "step": 0.02 if model["kind"] == "mlp" else 0.01},
                "meta": {"tasks_per_batch": 4, "optimizer": {"lr": 3e-3}, **meta},
                "evaluation": {"every": 1000, "tasks": 20, "epochs": 2},
                "runtime": {"threads": 1, "device": "cpu"},
            }
        )
    )


def test_digits_are_learnt() -> None:
    trained = train(job({"kind": "mlp", "hidden": [32]}, iterations=120))
    never = job({"kind": "mlp", "hidden": [32]}, iterations=1).model_copy(
        update={"method": JobSpec.model_validate({"family": {"kind": "sinusoid"}, "method": {"kind": "random"}}).method}
    )
    from_theta = trained.metrics["accuracy_flow"][-1][1]
    from_random = train(never).metrics["accuracy_flow"][-1][1]
    assert from_theta > 0.8  # chance is a third
    assert from_theta > from_random + 0.2
    assert trained.metrics["classes_train"] == [(0, 7.0)]
    assert "accuracy_nearest_class_mean" in trained.metrics


def test_a_files_convolution_is_rebuilt_and_adapts(tmp_path: Path) -> None:
    run = train(job({"kind": "conv4", "filters": 8}, iterations=2))
    run.save(tmp_path / "init.safetensors")
    model = amaml.load(tmp_path / "init.safetensors")
    assert {name: tensor.shape for name, tensor in model.named_parameters()} == {
        name: tensor.shape for name, tensor in run.initialization.items()
    }
    data = digits()
    chosen = np.concatenate([np.flatnonzero(data.labels == label)[:8] for label in (2, 5, 7)])
    x, y = data.images[chosen].reshape(24, -1), np.repeat([0, 1, 2], 8)
    adapted = amaml.adapt(model, x.tolist(), y.tolist(), by="finetune", epochs=40, lr=0.01, units="raw")
    chances = amaml.run.adaptation.predict(adapted, x.tolist())
    assert chances.shape == (24, 3)
    assert (chances.argmax(dim=1).numpy() == y).mean() > 0.9
    again = train(job({"kind": "conv4", "filters": 8}, iterations=2))
    assert all(torch.equal(tensor, again.initialization[name]) for name, tensor in run.initialization.items())
