"""What a run reports bears names that are declared, with the occasion that is declared."""

from __future__ import annotations

import pytest

from amaml import metrics
from amaml.metrics import ADAPTED_BY, METRICS, SCORED_BY, error_of, score
from amaml.objectives import BUILT_IN
from amaml.run.training import Training
from tests.amaml.jobs import small

SCORES = {
    score(metric, how) for metric in SCORED_BY for how in [*ADAPTED_BY, "zero", "population_mean", "kernel_ridge"]
}


@pytest.fixture(scope="module")
def reported() -> dict[str, set[str]]:
    """Of a run that clips, learns its flow and certifies: what it reports by the phase."""
    spec = small(
        method={"kind": "amaml", "proximal": 0.1, "learn": ["length", "rates", "proximal"]},
        solver={"kind": "dopri5", "step": None, "guard": True},
        meta={"iterations": 3, "clip": {}},
        evaluation={"select": "validation"},
        runtime={"certify_every": 2},
    )
    found: dict[str, set[str]] = {}
    for report in Training.start(spec, {}):
        found.setdefault(report.phase, set()).update(report.metrics)
    return found


def test_a_meta_iterations_metrics_are_declared(reported: dict[str, set[str]]) -> None:
    at_need = {metrics.LEFT_OUT, metrics.MICRO_BATCH, metrics.MEMORY_BYTES}  # the last is the trainer's own
    assert reported["training"] == {name for name, one in METRICS.items() if one.each == "iteration"} - at_need


def test_an_evaluations_metrics_are_declared(reported: dict[str, set[str]]) -> None:
    own = {name for name, one in METRICS.items() if one.each == "evaluation"}
    assert reported["evaluating"] <= own | SCORES | {error_of(name) for name in SCORES}
    assert {score("nrmse", how) for how in ADAPTED_BY} <= reported["evaluating"]


def test_built_in_objectives_score_by_what_is_declared() -> None:
    found = {one.metric.name: one.metric.higher_is_better for one in BUILT_IN.values()}
    assert found == {name: not one.lower_is_better for name, one in SCORED_BY.items()}
    assert found == {"nrmse": False, "accuracy": True}
