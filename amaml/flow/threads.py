"""How many of PyTorch's threads an evaluation of the derivatives takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

SMALL = 1e6
"""Parameters times points of all tasks, about the multiplications of a forward pass. Below, two threads were no faster than
one on idle cores; on busy ones they wait for each other, for many times as long as the work takes."""

_lock = threading.Lock()
_inside, _before = 0, 1


def points_of(tasks: Any) -> int:
    """How many points [B, n, …] hold, of all tasks: the most of any tensor."""
    return max((leaf.shape[:2].numel() for leaf in tree_leaves(tasks) if isinstance(leaf, Tensor)), default=0)


@contextmanager
def threads_for(u: Tensor, points: int) -> Iterator[None]:
    """One thread where the evaluation at u [B, P] is small and on a processor, else as many as are set.

    PyTorch keeps the number in part for the calling thread, in part for the whole process. So other threads' matrix products run
    on one thread meanwhile, and a thread that uses PyTorch for the first time meanwhile begins with one, until it sets another
    number. What every thread that leaves sets again is the number of the first one that entered.
    """
    if u.is_cuda or u.shape[1] * points >= SMALL:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _before  # noqa: PLW0603 - counted for the whole process, as the number is kept
    with _lock:
        if not _inside:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)


def _leave() -> None:
    global _inside  # noqa: PLW0603
    with _lock:
        _inside -= 1
        torch.set_num_threads(_before)
