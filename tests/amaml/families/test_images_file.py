"""Reading labelled images: shapes, classes, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from amaml.families.images.file import BadImages, inspect, read

IMAGES = np.arange(10 * 5 * 4).reshape(10, 5, 4).astype(np.uint8)
LABELS = np.arange(10) % 3


def test_images_without_a_channel_axis_get_one(tmp_path: Path) -> None:
    path = _saved(tmp_path, images=IMAGES, labels=LABELS)
    report = inspect(path)
    assert (report.images, report.shape, report.dtype) == (10, (1, 5, 4), "U8")
    assert (report.classes, report.errors) == ({0: 4, 1: 3, 2: 3}, [])
    images, labels = read(path)
    np.testing.assert_array_equal(images[:, 0], IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_images_are_mapped_and_not_held(tmp_path: Path) -> None:
    images, _ = read(_saved(tmp_path, images=IMAGES.reshape(10, 1, 5, 4).astype(np.float32), labels=LABELS))
    assert isinstance(images, np.memmap)


def test_values_that_are_not_finite_are_told_by_image(tmp_path: Path) -> None:
    images = IMAGES.astype(np.float64)
    images[3, 1, 1], images[7, 0, 0] = np.nan, np.inf
    path = _saved(tmp_path, images=images, labels=LABELS)
    assert [error.line for error in inspect(path).errors] == [4, 8]
    assert [error.line for error in inspect(path, max_errors=1).errors] == [4]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"images": IMAGES}, "no tensor 'labels'"),
        ({"images": IMAGES, "labels": LABELS[:9]}, "images has 10 and labels 9"),
        ({"images": IMAGES[0], "labels": LABELS}, r"images has shape \[5, 4\]"),
        ({"images": IMAGES.astype(np.int32), "labels": LABELS}, "images is I32: convert it"),
        ({"images": IMAGES, "labels": LABELS.astype(np.float32)}, "labels is F32: convert it"),
        ({"images": np.zeros((1, 600, 600), np.uint8), "labels": LABELS[:1]}, "scale them down"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least one image"),
    ],
)
def test_tensors_that_are_no_labelled_images_are_refused(tmp_path: Path, tensors: dict, sentence: str) -> None:
    path = _saved(tmp_path, **tensors)
    with pytest.raises(BadImages, match=sentence):
        read(path)
    assert len(inspect(path).errors) == 1


@pytest.mark.parametrize("length", [0, 7, 60])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, length: int) -> None:
    path = _saved(tmp_path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BadImages):
        read(path)


def test_a_file_whose_tensors_are_cut_short_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadImages, match="cut short"):
        read(path)


def _saved(folder: Path, **tensors: np.ndarray) -> Path:
    path = folder / "images.safetensors"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path
