"""Metrics have the same names for the dashboard, the command and the examples as for the run."""

from __future__ import annotations

from amaml import metrics
from amaml_client.cli.output import META_LOSS
from amaml_client.cli.watch import ADAPTED
from service.dashboard.metric_names import FILE, written
from service.http.examples import example
from service.jobs.schemas import JobDocument
from service.studies.schemas import CellDocument


def test_the_dashboards_names_are_those_that_are_declared() -> None:
    assert FILE.read_text(encoding="utf-8") == written(), "run python -m service.dashboard.metric_names"


def test_the_commands_names_are_those_that_are_declared() -> None:
    assert META_LOSS == metrics.META_LOSS
    assert {how[1:] for how in ADAPTED} <= metrics.ADAPTED_BY.keys()


def test_the_examples_names_are_declared() -> None:
    scores = {metrics.score(metric, how) for metric in metrics.SCORED_BY for how in metrics.ADAPTED_BY}
    named = {*example(JobDocument)["metrics"], *example(CellDocument)["metrics"]}
    assert named
    assert named <= metrics.METRICS.keys() | scores
