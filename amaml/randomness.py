"""Counter-based randomness: every draw is a pure function of (seed, purpose, index).

So a resumed run needs no generator state, and no draw depends on earlier ones.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A generator for this purpose and index only; the same arguments give the same numbers on every machine."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index, bits=128)))


def key(seed: int, purpose: str, *index: int, bits: int = 63) -> int:
    """A hash of (seed, purpose, index) with this many bits, for generators that take a seed."""
    words = "/".join((str(seed), purpose, *map(str, index)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest(), "little") >> (256 - bits)
