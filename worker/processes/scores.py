"""An evaluation as the trainer reports it: every task's scores, and the curves as mean and standard error over tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.processes.protocol import AlongFlow, Evaluated

if TYPE_CHECKING:
    from torch import Tensor

    from amaml.run.evaluation import Evaluation


def evaluated(step: int, found: Evaluation) -> Evaluated:
    """After `step` meta-iterations."""
    along = found.along_flow
    curve = {"epochs": [float(epoch) for epoch in found.curve.epochs], **_over_tasks(found.curve.scores)}
    return Evaluated(
        step=step,
        metric=found.metric.name,
        higher_is_better=found.metric.higher_is_better,
        scores={name: scores.tolist() for name, scores in found.scores.items()},
        curve=curve,
        along_flow=None
        if along is None
        else AlongFlow(times=along.times, trouble=along.trouble, **_over_tasks(along.scores)),
    )


def _over_tasks(scores: Tensor) -> dict[str, list[float]]:
    """[E, B] → mean and standard error [E]; one task alone has none, which is given as NaN."""
    tasks = scores.shape[1]
    error = scores.std(dim=1) / tasks**0.5 if tasks > 1 else scores.new_full(scores.shape[:1], float("nan"))
    return {"mean": scores.mean(dim=1).tolist(), "error": error.tolist()}
