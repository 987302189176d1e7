"""Labelled images in a safetensors file: `images` [n, h, w] or [n, c, h, w], `labels` [n]. Imports no torch.

The tensors are memory-mapped, so that a task reads only the images that it draws.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from amaml.families.images.reader import MAX_HEADER
from amaml.families.upload import BadLine

MAX_PIXELS: Final = 3 * 256 * 256
"""The largest number of values of an image, over all channels."""
_BLOCK_BYTES: Final = 16 << 20
_IMAGE_TYPES: Final = {"U8": "|u1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_LABEL_TYPES: Final = {
    "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip


class BadImages(ValueError):
    """The file isn't a valid file of labelled images; the message says what is wrong and what is needed."""


class Images(NamedTuple):
    images: NDArray[Any]
    """The images [n, c, h, w], memory-mapped, in the file's own dtype."""
    labels: NDArray[np.int64]
    """The labels [n]."""


@dataclass(frozen=True)
class ImagesReport:
    """The content of a file; if there are `errors`, the other fields are meaningless."""

    images: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    """The (channels, height, width) of each image."""
    dtype: str = ""
    """The images' dtype as safetensors names it: U8, F16, F32 or F64."""
    classes: dict[int, int] = field(default_factory=dict)
    """The number of images with each label, the smallest label first."""
    errors: list[BadLine] = field(default_factory=list)
    """The errors, the first of them if there are many. Their line is the image's number from 1, or 0 for the file as a whole."""


def inspect(path: Path, *, max_errors: int = 20) -> ImagesReport:
    """The report on the file: shape, classes, and images with values that aren't finite. Reads the file once, block by block."""
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
    """The file's images and labels. Raises BadImages for an invalid file, OSError for an unreadable one."""
    header = _header(path)
    tensors = {}
    for name, types, dimensions in (("images", _IMAGE_TYPES, (3, 4)), ("labels", _LABEL_TYPES, (1,))):
        if name not in header:
            found = ", ".join(sorted(header)[:8]) or "none"
            raise BadImages(f"there is no tensor {name!r}: the file needs images and labels, and has {found}")
        tensors[name] = _mapped(path, name, header[name], types, dimensions)
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


class _Entry(NamedTuple):
    """A tensor's entry in the header."""

    dtype: str
    shape: list[int]
    offset: int
    """The offset of its first byte in the file."""


def _header(path: Path) -> dict[str, _Entry]:
    """The header's entries by tensor name. The format's own reader refuses overlaps, gaps, and lengths that don't add up to that
    of the file, so each tensor begins where the one before it ends. Raises BadImages for an invalid header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:  # the format's own reader allows a hundred times as much
        raise BadImages(
            f"this is no safetensors file, or its header is longer than {MAX_HEADER} bytes: save images and labels alone by it"
        )
    found, offset = {}, 8 + length
    try:
        with safe_open(path, framework="numpy") as opened:
            for name in opened.offset_keys():
                tensor = opened.get_slice(name)
                dtype, shape = str(tensor.get_dtype()), list(tensor.get_shape())
                found[name] = _Entry(dtype, shape, offset)
                offset += math.prod(shape) * _bits(dtype) // 8
    except SafetensorError as problem:
        raise BadImages(
            f"this is no safetensors file, or it is damaged or was cut short ({problem}): save it by safetensors"
        ) from problem
    return found


def _bits(dtype: str) -> int:
    """The number of bits of one value, taken from its dtype's name, such as U8, BF16 or F8_E4M3."""
    bits = re.match(r"[A-Z]+([0-9]+)", dtype)
    return 8 if bits is None else int(bits[1])  # BOOL names none


def _mapped(path: Path, name: str, entry: _Entry, types: dict[str, str], dimensions: tuple[int, ...]) -> NDArray[Any]:
    """The tensor as a read-only memory map. Raises BadImages for a dtype or number of dimensions that isn't allowed."""
    if entry.dtype not in types:
        raise BadImages(f"{name} is {entry.dtype}: convert it to one of {', '.join(types)}")
    if len(entry.shape) not in dimensions:
        wanted = "[n, h, w] or [n, c, h, w]" if name == "images" else "[n]"
        raise BadImages(f"{name} has shape {entry.shape}: it needs {wanted}")
    kind = np.dtype(types[entry.dtype])
    if 0 in entry.shape:
        return np.empty(entry.shape, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=entry.offset, shape=tuple(entry.shape))
