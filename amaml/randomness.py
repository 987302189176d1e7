"""Counter-based randomness: every draw is a pure function of (seed, purpose, index).

So a resumed run needs no generator state, and no draw depends on what was drawn before it.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A generator of its own for this purpose and index; the same arguments give the same numbers on every machine."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index, bits=128)))


def key(seed: int, purpose: str, *index: int, bits: int = 63) -> int:
    """A number of so many bits that stands for (seed, purpose, index), for generators that take a seed."""
    words = "/".join((str(seed), purpose, *map(str, index)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest(), "little") >> (256 - bits)
