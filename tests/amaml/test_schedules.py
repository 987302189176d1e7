"""Learning rates and trajectory lengths over a run."""

from __future__ import annotations

import math

import pytest

from amaml.run.schedules import INVERSE_SQRT_AFTER, length_at, rate_factor
from amaml.run.training import train
from amaml.spec import Horizon, OptimizerSpec, TrajectorySpec
from tests.amaml.jobs import small


def test_rates_over_a_run() -> None:
    def rate(schedule: str, iteration: int, warmup: int = 0) -> float:
        spec = OptimizerSpec.model_validate({"schedule": schedule, "warmup": warmup})
        return rate_factor(spec, iteration, 100)

    assert [rate("constant", i) for i in (0, 50, 99)] == [1.0, 1.0, 1.0]
    assert rate("inverse_sqrt", 0) == 1.0
    assert rate("inverse_sqrt", INVERSE_SQRT_AFTER) == pytest.approx(1.0 / math.sqrt(2))
    assert rate("inverse_sqrt", 99 * INVERSE_SQRT_AFTER) == pytest.approx(0.1)
    assert rate("cosine", 0) == 1.0
    assert rate("cosine", 50) == pytest.approx(0.5)
    assert 0 < rate("cosine", 99) < 1e-3
    assert [rate("constant", i, warmup=4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate("cosine", 1, warmup=4) == pytest.approx(0.5 * rate("cosine", 1))


def test_lengths() -> None:
    growing = TrajectorySpec(length=1.0, schedule=[(2, 3.0), (5, 7.0)])
    assert [length_at(growing, i) for i in range(7)] == [1.0, 1.0, 3.0, 3.0, 3.0, 7.0, 7.0]
    assert length_at(TrajectorySpec(length=4.0), 9) == 4.0
    assert length_at(TrajectorySpec(horizons=[Horizon(at=1.0), Horizon(at=2.5)]), 0) == 2.5


def test_the_trajectory_grows_with_its_schedule() -> None:
    run = train(
        small(
            trajectory={"schedule": [[2, 1.0]]},
            meta={"iterations": 3},
            solver={"guard": False},
            evaluation={"epochs": 1},
        )
    )
    assert [hvps for _, hvps in run.metrics["hvps"]] == [5.0, 5.0, 10.0]
    assert "lambda_max" not in run.metrics  # without the guard it isn't estimated


def test_horizons_share_a_solve() -> None:
    horizons = [{"at": 0.2, "weight": 1.0}, {"at": 0.5, "weight": 2.0}]
    run = train(
        small(
            trajectory={"horizons": horizons}, meta={"iterations": 1}, solver={"guard": False}, evaluation={"epochs": 1}
        )
    )
    assert run.metrics["hvps"] == [(1, 5.0)]
