"""The number of PyTorch threads that an evaluation of the derivatives uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

SMALL = 1e6
"""Parameters times points of all tasks: about the number of multiplications in a forward pass. Below this, two threads were no
faster than one on idle cores; on busy cores they wait for each other for much longer than the work takes."""

_lock = threading.Lock()
_inside, _before = 0, 1


def points_of(tasks: Any) -> int:
    """The number of points of all tasks: the largest B·n of any tensor [B, n, …] among them."""
    return max((leaf.shape[:2].numel() for leaf in tree_leaves(tasks) if isinstance(leaf, Tensor)), default=0)


@contextmanager
def threads_for(u: Tensor, points: int) -> Iterator[None]:
    """Uses one thread where the evaluation at u [B, P] is small and on the CPU, otherwise as many as are set.

    PyTorch keeps the number partly for the calling thread and partly for the whole process. So meanwhile matrix products of other
    threads run on one thread, too, and a thread that uses PyTorch for the first time starts with one. Every thread that leaves
    restores the number that was set when the first one entered.
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
    global _inside, _before  # noqa: PLW0603 - the number of threads is the whole process's, so this count is too
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
