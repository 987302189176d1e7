"""Kernel ridge regression: its predictions, the choice of its two numbers, and where it is left out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from amaml.families.base import Family, Tasks
from amaml.objectives import ACCURACY, NRMSE
from amaml.registry import build_family
from amaml.run import assessment, baselines
from amaml.run.baselines import LENGTHS, RIDGES, SUPPORT, baseline_scores, ridge_predictions, tuned
from amaml.run.training import Training
from amaml.spec import CosMixtureSpec, FamilySpec, ImagesSpec, PoissonSpec, SinusoidSpec
from tests.amaml.jobs import small
from tests.amaml.problems import done


def family_of(spec: FamilySpec) -> Family:
    return build_family(spec, seed=0, dtype=torch.float64, device=torch.device("cpu"), datasets={})


def test_predictions_by_hand() -> None:
    random = np.random.default_rng(0)
    x, z, y = random.normal(size=(2, 6, 3)), random.normal(size=(2, 4, 3)), random.normal(size=(2, 6, 2))
    found = ridge_predictions(
        {"support_x": torch.tensor(x), "support_y": torch.tensor(y), "query_x": torch.tensor(z)}, 0.7, 0.01
    )
    for task in range(2):

        def kernel(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.mean([np.exp(-((p - q) ** 2) / (2 * 0.7**2)) for p, q in zip(a, b, strict=True)]))

        own = np.array([[kernel(a, b) for b in x[task]] for a in x[task]])
        weights = np.linalg.solve(own + 0.01 * np.eye(6), y[task])
        expected = np.array([[kernel(a, b) for b in x[task]] for a in z[task]]) @ weights
        np.testing.assert_allclose(found[task].numpy(), expected, rtol=1e-10)


def test_without_a_ridge_it_interpolates_the_support_points() -> None:
    tasks = family_of(SinusoidSpec(shots=8)).training_batch(0, 3)
    at_support = tasks | {"query_x": tasks["support_x"]}
    torch.testing.assert_close(ridge_predictions(at_support, 0.2, 1e-10), tasks["support_y"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("metric", [NRMSE, ACCURACY], ids=["smallest", "largest"])
def test_the_best_of_the_grid_is_chosen_on_the_tasks_given(metric) -> None:  # type: ignore[no-untyped-def]
    spec = SinusoidSpec(shots=5) if metric is NRMSE else ImagesSpec(dataset="digits", shots=2, queries=5)
    tasks = family_of(spec).training_batch(0, 6)
    choice, times = done(tuned(tasks, metric))
    scores = {
        own: metric.score(ridge_predictions(tasks, *own), tasks["query_y"]).mean().item()
        for own in product(LENGTHS, RIDGES)
    }
    best = max(scores.values()) if metric.higher_is_better else min(scores.values())
    assert scores[choice] == best
    assert len(set(scores.values())) > 10
    assert times == len(LENGTHS)


def test_it_learns_sums_of_functions_of_one_input_each() -> None:
    scores, _ = done(baseline_scores(family_of(CosMixtureSpec(shots=50)), 20))
    assert scores["kernel_ridge"].mean() < 0.05
    assert scores["population_mean"].mean() > 0.5


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(SinusoidSpec())
    whole, _ = done(baseline_scores(family, 10))
    monkeypatch.setattr(baselines, "BLOCK", 10 * (10 + 200) * 3)
    cut, _ = done(baseline_scores(family, 10))
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "spec", [PoissonSpec(), SinusoidSpec(shots=SUPPORT + 1)], ids=["targets of another kind", "too many points"]
)
def test_it_is_left_out_where_it_does_not_fit(spec: FamilySpec) -> None:
    scores, _ = done(baseline_scores(family_of(spec), 2))
    assert "kernel_ridge" not in scores
    assert "zero" in scores


def test_a_run_computes_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(family: Family, size: int):  # type: ignore[no-untyped-def]
        calls.append(size)
        return baseline_scores(family, size)

    monkeypatch.setattr(assessment, "baseline_scores", counted)
    reports = [report.metrics for report in Training.start(small()) if "nrmse_flow" in report.metrics]
    assert calls == [4]
    assert len({report["nrmse_kernel_ridge"] for report in reports}) == 1
    assert len(reports) == 3


def test_repeated_rows_are_solved() -> None:
    x = torch.zeros(1, 5, 2, dtype=torch.float64)
    tasks: Tasks = {"support_x": x, "support_y": torch.ones(1, 5, 1).double(), "query_x": x, "query_y": x[..., :1]}
    assert ridge_predictions(tasks, 0.2, min(RIDGES)).isfinite().all()
