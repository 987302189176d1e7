"""Detects and checks uploaded files of labelled images. Imports no torch, and numpy only to read a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from amaml.dataset_report import MAX_ERRORS, DatasetReport, ImagesReport, line_errors
from amaml.families.upload import BadLine, Head

FORMATS: Final = {"safetensors": "safetensors"}
MAX_HEADER: Final = 1 << 20
"""The largest number of bytes of a file's header; images and labels need some hundreds."""


def accepts(head: Head) -> str | None:
    """A file of eight bytes that are no text, and a JSON object: length and contents of a header."""
    start = head.data[:8]
    if head.data[8:9] != b"{" or all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return None
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise BadLine(
            0,
            f"its safetensors header claims {length} bytes, at most {MAX_HEADER} are read: "
            "save images and labels alone, by safetensors",
        )
    return "safetensors"


def validate(path: Path, format_: str) -> DatasetReport:  # noqa: ARG001 - there is one
    from amaml.families.images import file  # noqa: PLC0415 - its native libraries take time and memory

    found = file.inspect(path, max_errors=MAX_ERRORS)
    if found.errors:
        return DatasetReport(rows=0, errors=line_errors(found.errors))
    channels, height, width = found.shape
    counts = found.classes.values()
    return DatasetReport(
        rows=found.images,
        tasks=len(counts),
        images=ImagesReport(
            channels=channels, height=height, width=width, dtype=found.dtype,
            classes=len(counts), smallest_class=min(counts), largest_class=max(counts),
        ),
    )  # fmt: skip
