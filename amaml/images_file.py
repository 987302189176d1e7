"""Labelled images in a safetensors file: `images` [n, h, w] or [n, c, h, w], `labels` [n]. Imports no torch.

Nothing is held: the tensors are mapped, so that an episode reads the images that it draws.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from amaml.ratings_file import BadLine

MAX_PIXELS: Final = 3 * 256 * 256
"""Of an image, all channels together."""
_MAX_HEADER: Final = 1 << 20
_BLOCK_BYTES: Final = 16 << 20
_IMAGE_TYPES: Final = {"U8": "|u1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_LABEL_TYPES: Final = {
    "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip


class BadImages(ValueError):
    """The file isn't labelled images; the message says what is wrong with it and what it needs."""


class Images(NamedTuple):
    images: NDArray[Any]
    """[n, c, h, w], mapped: of the file's own dtype."""
    labels: NDArray[np.int64]
    """[n]"""


@dataclass(frozen=True)
class ImagesReport:
    """What is in a file; only `errors` means anything where there are some."""

    images: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    """(channels, height, width) of each."""
    dtype: str = ""
    """As safetensors names it: U8, F16, F32 or F64."""
    classes: dict[int, int] = field(default_factory=dict)
    """How many images each label has, the smallest label first."""
    errors: list[BadLine] = field(default_factory=list)
    """Of an image its number from 1 as the line; 0: the file as a whole."""


def inspect(path: Path, *, max_errors: int = 20) -> ImagesReport:
    """Reads the whole file once, holding a block of it: shapes, classes, and images with values that aren't finite."""
    try:
        images, labels = read(path)
    except BadImages as problem:
        return ImagesReport(errors=[BadLine(0, str(problem))])
    values, counts = np.unique(labels, return_counts=True)
    errors: list[BadLine] = []
    if images.dtype.kind == "f":
        rows = max(1, _BLOCK_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            wrong = ~np.isfinite(images[start : start + rows]).all(axis=(1, 2, 3))
            errors += [
                BadLine(start + int(row) + 1, "this image holds NaN or infinite values")
                for row in np.flatnonzero(wrong)[: max_errors - len(errors)]
            ]
    channels, height, width = images.shape[1:]
    return ImagesReport(
        len(images),
        (channels, height, width),
        next(name for name, dtype in _IMAGE_TYPES.items() if np.dtype(dtype) == images.dtype),
        {int(value): int(count) for value, count in zip(values, counts, strict=True)},
        errors,
    )


def read(path: Path) -> Images:
    """The file's tensors. Raises BadImages, OSError."""
    header, start = _header(path)
    tensors = {}
    for name, types, dimensions in (("images", _IMAGE_TYPES, (3, 4)), ("labels", _LABEL_TYPES, (1,))):
        entry = header.get(name)
        if not isinstance(entry, dict):
            found = ", ".join(sorted(header)[:8]) or "none"
            raise BadImages(f"there is no tensor {name!r}: the file needs images and labels, and has {found}")
        tensors[name] = _mapped(path, start, name, entry, types, dimensions)
    images, labels = tensors["images"], tensors["labels"]
    if len(images) == 0 or len(images) != len(labels):
        raise BadImages(
            f"images has {len(images)} and labels {len(labels)} entries: give every image one label, and at least one image"
        )
    if images.ndim == 3:
        images = images[:, None]
    if not 1 <= math.prod(images.shape[1:]) <= MAX_PIXELS:
        raise BadImages(
            f"images has shape {images.shape}, and 1 to {MAX_PIXELS} values an image are read: scale them down"
        )
    return Images(images, np.asarray(labels, dtype=np.int64))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What safetensors says about the tensors, and where their bytes begin."""
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= _MAX_HEADER:
            raise BadImages("this is no safetensors file, or its header is longer than 1 MiB: save it by safetensors")
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError as problem:
        raise BadImages(f"its header can't be read ({problem}): save it by safetensors") from problem
    if not isinstance(header, dict):
        raise BadImages("its header is no JSON object: save it by safetensors")
    header.pop("__metadata__", None)
    return header, 8 + length


def _mapped(
    path: Path, start: int, name: str, entry: dict[str, Any], types: dict[str, str], dimensions: tuple[int, ...]
) -> NDArray[Any]:
    """The tensor as a read-only map of its bytes."""
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in types:
        raise BadImages(f"{name} is {dtype}: convert it to one of {', '.join(types)}")
    if not _whole_numbers(shape) or len(shape) not in dimensions:
        wanted = "[n, h, w] or [n, c, h, w]" if name == "images" else "[n]"
        raise BadImages(f"{name} has shape {shape}: it needs {wanted}")
    kind = np.dtype(types[str(dtype)])
    size = math.prod(shape) * kind.itemsize
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise BadImages(f"{name} of shape {shape} and type {dtype} has offsets {offsets}: the file is damaged")
    if start + offsets[1] > path.stat().st_size:
        raise BadImages(f"{name} ends after the end of the file: it was cut short, send it again")
    if size == 0:
        return np.empty(shape, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=start + offsets[0], shape=tuple(shape))


def _whole_numbers(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
