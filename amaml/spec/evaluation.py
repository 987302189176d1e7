"""How a run is evaluated on unseen tasks. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from amaml.families.spec import TestTasks
from amaml.spec.part import Part


class EvaluationSpec(Part):
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Meta-iterations between evaluations; the last iteration is always evaluated."""
    tasks: TestTasks = 100
    """Unseen tasks evaluated (at most the family's test_tasks)."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Full-batch Adam epochs of the fine-tuning curve."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    learned_rates: bool = False
    """Fine-tuning from the learned θ takes lr times the rate that `method.learn` found for each parameter, not lr alone."""
    select: Literal["last", "validation"] = "last"
    """Which θ becomes the initialization: the last, or the best on validation tasks."""
