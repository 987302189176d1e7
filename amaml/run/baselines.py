"""The scores of unseen tasks without a trained network: the family's own baselines, and kernel ridge regression.

Kernel ridge regression learns only two numbers from other tasks, the kernel's length and the ridge, which are chosen on training
tasks. Its kernel is additive, the mean over the inputs of exp(−(x_i − x'_i)² / 2ℓ²). So it fits a sum of functions of one input
each, which needs far fewer points than a function of all inputs (Duvenaud, Nickisch, Rasmussen, Additive Gaussian Processes,
2011).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from amaml.families.base import Family, Tasks
from amaml.modes import plain_modes
from amaml.objectives import BUILT_IN, Metric

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""The kernel's lengths that are tried, in standard deviations of an input."""
RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0)
TUNING_TASKS = 32
SUPPORT, INPUTS = 500, 1_000
"""With more support points or inputs than these, kernel ridge regression is left out, since it would take too long."""
BLOCK = 2**22
"""The most entries of kernel matrices for a block of tasks."""


def baseline_scores(family: Family, size: int) -> Generator[None, None, dict[str, Tensor]]:
    """The scores [B] of the first `size` test tasks by name of the baseline. Yields between parts of the work, so that a caller
    can report progress."""
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
    """Whether kernel ridge regression applies: support targets must be of the same kind as predictions, and few enough."""
    _, points, inputs = tasks["support_x"].shape
    return family.objective in BUILT_IN.values() and points <= SUPPORT and inputs <= INPUTS


def tuned(tasks: Tasks, metric: Metric) -> Generator[None, None, tuple[float, float]]:
    """The (length, ridge) with the best mean score over these tasks."""
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
    """The predictions at every task's query points [B, m, o], computed in float64 on the CPU for accurate linear systems."""
    support, query = (tasks[name].detach().double().cpu() for name in ("support_x", "query_x"))
    targets = tasks["support_y"].detach().double().cpu()
    own = _kernel(support, support, length)
    own.diagonal(dim1=1, dim2=2).add_(ridge)
    weights = torch.cholesky_solve(targets, torch.linalg.cholesky(own))
    return _kernel(query, support, length) @ weights


def _kernel(x: Tensor, y: Tensor, length: float) -> Tensor:
    """The kernel of [B, n, d] and [B, m, d] as [B, n, m], summed one input at a time, since all at once would take d times as
    much memory."""
    total = torch.zeros(len(x), x.shape[1], y.shape[1], dtype=x.dtype)
    for one, other in zip(x.unbind(dim=2), y.unbind(dim=2), strict=True):
        total += (one[:, :, None] - other[:, None, :]).square_().mul_(-0.5 / length**2).exp_()
    return total / x.shape[2]


def _blocks(tasks: Tasks) -> Iterator[Tasks]:
    """The tasks in order, divided into blocks that fit into memory."""
    points = tasks["support_x"].shape[1]
    size = max(1, BLOCK // (points * (points + tasks["query_x"].shape[1])))
    for start in range(0, len(tasks["support_x"]), size):
        yield {name: tensor[start : start + size] for name, tensor in tasks.items()}
