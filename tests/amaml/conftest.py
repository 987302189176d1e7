"""Before torch is imported: on a busy machine its threads are to sleep while they wait, and not to spin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A training sets these for the whole process."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_num_threads(before[1])
