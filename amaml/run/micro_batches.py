"""A batch of tasks that doesn't fit into memory is taken in micro-batches, halved until they do.

Tasks are independent, so a micro-batch changes no task's result in its meaning. Its last bits it may change: those of a batched
product depend on the number of tasks in it. (The compiled kernel takes a task at a time, so its bits stay.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor

from amaml import memory
from amaml.flow.result import SolveError
from amaml.methods.estimate import Estimate
from amaml.methods.joined import joined
from amaml.run.outcome import OutOfMemory
from amaml.spec import JobSpec

_log = logging.getLogger(__name__)

Tasks = dict[str, Tensor]


def in_micro_batches(estimate: Callable[[Tasks], Estimate], tasks: Tasks, size: int) -> Generator[None, None, Estimate]:
    """The estimate for all tasks, of which `size` at most are taken at once; yields after each of several micro-batches. Raises
    SolveError for all tasks that failed, by their places in the whole batch."""
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

    Raises the error itself where it doesn't say that memory was refused, and where other processes hold the memory; OutOfMemory
    where one task alone doesn't fit. Call `memory.release` once the error, whose frames hold tensors, is gone.
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
