"""What unseen tasks score without a trained network: the family's own baselines, and kernel ridge regression.

Kernel ridge regression knows nothing of other tasks but two numbers, the kernel's length and the ridge, which are chosen on
training tasks. Its kernel is additive, the mean over the inputs of exp(−(x_i − x'_i)² / 2ℓ²): a sum of functions of one input
each, which needs far fewer points than a function of all of them (Duvenaud, Nickisch, Rasmussen, Additive Gaussian
Processes, 2011).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from amaml.families.base import Family, Tasks
from amaml.modes import plain_modes
from amaml.objectives import BUILT_IN, Metric

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""In standard deviations of an input."""
RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0)
TUNING_TASKS = 32
SUPPORT, INPUTS = 500, 1_000
"""With more support points or inputs than these, kernel ridge regression is left out, since it would take too long."""
BLOCK = 2**22
"""Entries of the kernel's matrices that a block of tasks may have at once."""


def baseline_scores(family: Family, size: int) -> Generator[None, None, dict[str, Tensor]]:
    """Name → [B], of the first `size` test tasks; yields now and then, so that a caller sees that it lives."""
    tasks, metric = family.evaluation_batch("test", size), family.objective.metric
    predicted = family.baselines("test", size)
    if is_for(family, tasks):
        ridge = yield from tuned(family.training_batch(0, TUNING_TASKS), metric)
        columns = []
        for block in _blocks(tasks):
            columns.append(ridge_predictions(block, *ridge))
            yield
        predicted["kernel_ridge"] = torch.cat(columns)
    return {name: metric.score(values, tasks["query_y"].to(values)) for name, values in predicted.items()}


def is_for(family: Family, tasks: Tasks) -> bool:
    """Whether there is a kernel ridge regression: support targets must be values of what is predicted."""
    _, points, inputs = tasks["support_x"].shape
    return family.objective in BUILT_IN.values() and points <= SUPPORT and inputs <= INPUTS


def tuned(tasks: Tasks, metric: Metric) -> Generator[None, None, tuple[float, float]]:
    """The (length, ridge) with the best mean over these tasks."""
    best, chosen = None, (LENGTHS[0], RIDGES[0])
    for length in LENGTHS:
        for ridge in RIDGES:
            scores = [
                metric.score(ridge_predictions(block, length, ridge), block["query_y"].cpu())
                for block in _blocks(tasks)
            ]
            score = torch.cat(scores).mean().item()
            if best is None or metric.better(score, best):
                best, chosen = score, (length, ridge)
        yield
    return chosen


@plain_modes()
def ridge_predictions(tasks: Tasks, length: float, ridge: float) -> Tensor:
    """At every task's query points [B, m, o], in float64 on the processor, where the linear systems keep their accuracy."""
    support, query = (tasks[name].detach().double().cpu() for name in ("support_x", "query_x"))
    targets = tasks["support_y"].detach().double().cpu()
    own = _kernel(support, support, length)
    own.diagonal(dim1=1, dim2=2).add_(ridge)
    weights = torch.cholesky_solve(targets, torch.linalg.cholesky(own))
    return _kernel(query, support, length) @ weights


def _kernel(x: Tensor, y: Tensor, length: float) -> Tensor:
    """[B, n, d] and [B, m, d] → [B, n, m], an input after another, for d times as much memory would be much."""
    total = torch.zeros(len(x), x.shape[1], y.shape[1], dtype=x.dtype)
    for one, other in zip(x.unbind(dim=2), y.unbind(dim=2), strict=True):
        total += (one[:, :, None] - other[:, None, :]).square_().mul_(-0.5 / length**2).exp_()
    return total / x.shape[2]


def _blocks(tasks: Tasks) -> Iterator[Tasks]:
    """The tasks cut into blocks that fit into memory, in order."""
    points = tasks["support_x"].shape[1]
    size = max(1, BLOCK // (points * (points + tasks["query_x"].shape[1])))
    for start in range(0, len(tasks["support_x"]), size):
        yield {name: tensor[start : start + size] for name, tensor in tasks.items()}
