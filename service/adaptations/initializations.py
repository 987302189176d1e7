"""The metadata of a stored initialization, read from the head of its file without its tensors and without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

from service.core import blobs

_LONGEST_HEAD: Final = 16 << 20


@dataclass(frozen=True)
class Facts:
    family: str
    objective: str
    in_features: int
    out_features: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Unreadable(ValueError):
    """The file isn't an initialization of this version."""


@lru_cache(maxsize=64)
def facts(blob_id: UUID) -> Facts:
    """Raises Unreadable, and blobs.BlobNotFound. Cached, because a blob never changes."""
    size = int.from_bytes(b"".join(blobs.read(blob_id, 0, 8)), "little")
    if size > _LONGEST_HEAD:
        raise Unreadable(f"its head of {size} bytes is too long")
    try:
        head = json.loads(b"".join(blobs.read(blob_id, 8, 8 + size)))["__metadata__"]
        spec = json.loads(head["spec"])  # of which one word is needed, be the family known here or not
        return Facts(
            family=spec["family"]["kind"],
            objective=head["objective"],
            in_features=int(head["in_features"]),
            out_features=int(head["out_features"]),
            inputs=tuple(json.loads(head["inputs"])),
            outputs=tuple(json.loads(head["outputs"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
