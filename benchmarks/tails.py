"""How the norms of the tasks' exact gradients are spread after Reptile has trained θ: what a clip of each is for.

3,000 tasks of CosMixture in two dimensions, T=3 in 60 Euler steps, float32.
"""

from __future__ import annotations

from typing import Any

import torch

import amaml
from amaml.run.training import Training
from amaml.spec import JobSpec
from benchmarks.record import Run, arguments

TASKS = 5
LENGTH, STEP = 3.0, 0.05


def trained_by_reptile(updates: int) -> Training:
    spec = JobSpec.model_validate(
        {
            "family": {"kind": "cosmixture", "dim": 2, "shots": 50, "queries": 50},
            "method": {"kind": "reptile"},
            "trajectory": {"length": LENGTH},
            "solver": {"kind": "euler", "step": STEP, "guard": False},
            "meta": {"iterations": updates, "tasks_per_batch": TASKS, "optimizer": {"lr": 1e-2, "schedule": "cosine"}},
            "evaluation": {"every": 1_000_000, "tasks": 1, "epochs": 1},
            "runtime": {"threads": 1},
        }
    )
    training = Training.start(spec)
    for _ in training:
        pass
    return training


def norms(training: Training, batches: int) -> torch.Tensor:
    """Of the gradients of tasks that weren't drawn before, sorted."""
    found = []
    for number in range(batches):
        tasks = training.setup.family.training_batch(training.iterations + number, TASKS)
        gradient = amaml.meta_gradient(
            training.initialization, *training.setup.losses, tasks, length=LENGTH, solver=amaml.Euler(STEP, guard=False)
        )
        squares = [tensor.double().flatten(1).square().sum(dim=1) for tensor in gradient.per_task.values()]
        found.append(torch.stack(squares).sum(dim=0).sqrt())
    return torch.cat(found).sort().values


def main(run: Run) -> None:
    found = norms(trained_by_reptile(30 if run.quick else 3_000), 20 if run.quick else 600)
    one_percent = found[-(len(found) // 100) :]
    results: dict[str, Any] = {
        "tasks": len(found),
        "median": found.median().item(),
        "percentile_99": found.quantile(0.99).item(),
        "largest": found[-1].item(),
        "share_of_the_second_moment_of_the_top_percent": (one_percent.square().sum() / found.square().sum()).item(),
    }
    run.write(results)
    print(results)


if __name__ == "__main__":
    main(arguments("tails"))
