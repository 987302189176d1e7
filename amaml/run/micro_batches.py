"""A batch of tasks that doesn't fit into memory is solved in micro-batches, whose size is halved until they fit.

Tasks are independent, so micro-batches change a task's result at most in its last bits: those of a batched product depend on the
number of tasks in it. The compiled kernel solves one task at a time, so its bits don't change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor

from amaml import memory
from amaml.flow.result import SolveError
from amaml.methods.estimate import GradientEstimate
from amaml.methods.joined import joined
from amaml.run.outcome import OutOfMemory
from amaml.spec import JobSpec

_log = logging.getLogger(__name__)

Tasks = dict[str, Tensor]


def in_micro_batches(
    estimate: Callable[[Tasks], GradientEstimate], tasks: Tasks, size: int
) -> Generator[None, None, GradientEstimate]:
    """The estimate for all tasks, computed for at most `size` tasks at once; yields after each micro-batch if there are several.
    Raises SolveError for all tasks that failed, with their indices in the whole batch."""
    batch = len(tasks["support_x"])
    if size >= batch:
        return estimate(tasks)
    parts, failures = [], []
    for start in range(0, batch, size):
        try:
            parts.append(estimate({name: tensor[start : start + size] for name, tensor in tasks.items()}))
        except SolveError as error:
            failures += [replace(failure, task=start + failure.task) for failure in error.failures]
        yield
    if failures:
        raise SolveError(failures)
    return joined(parts)


def halved(error: Exception, size: int, what: str, spec: JobSpec, device: torch.device) -> int:
    """The size of micro-batches to try next, after `what` raised this error with `size` tasks at once.

    Raises the error itself where it isn't about memory, and where other processes hold the memory; OutOfMemory where a single
    task doesn't fit. Call `memory.release` outside the `except` block, since the error's frames hold tensors.
    """
    if not memory.is_out_of_memory(error):
        raise error
    if size > 1:
        smaller = (size + 1) // 2
        _log.warning("%s of %d tasks at once doesn't fit into memory: from here on it takes %d", what, size, smaller)
        return smaller
    if memory.is_held_by_others(device):
        raise error
    raise OutOfMemory.of_one_task(error, what, spec, device) from None
