"""Dry runs, and the cost that they estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import pytest

from amaml.models.conv4.module import Conv4
from amaml.spec import JobSpec
from service.jobs.estimate import Estimate, estimate
from tests.support.api import SPEC, check_problem


def of(**parts: Any) -> Estimate:
    return estimate(JobSpec.model_validate({"family": {"kind": "sinusoid"}, **parts}))


def test_fixed_steps_are_counted_exactly() -> None:
    meta = {"iterations": 10, "tasks_per_batch": 4}
    for kind, stages in (("euler", 1), ("heun", 2), ("rk4", 4)):
        counted = of(meta=meta, solver={"kind": kind, "step": 0.1}, trajectory={"length": 3.0})
        assert (counted.gradients, counted.hvps) == (30 * stages * 40, 30 * stages * 40)


@pytest.mark.parametrize(
    ("method", "gradients", "hvps"),
    [
        ({"kind": "maml"}, 30, 30),
        ({"kind": "maml", "steps": 7}, 7, 7),
        ({"kind": "maml1"}, 1, 1),
        ({"kind": "comln"}, 30, 30),
        ({"kind": "fomaml"}, 30, 0),
        ({"kind": "reptile"}, 30, 0),
        ({"kind": "imaml", "cg_steps": 4}, 30, 4),
        ({"kind": "random"}, 0, 0),
    ],
)
def test_every_method_is_counted(method: dict[str, Any], gradients: int, hvps: int) -> None:
    meta = {"iterations": 10, "tasks_per_batch": 4}
    counted = of(method=method, meta=meta, solver={"kind": "euler", "step": 0.1}, trajectory={"length": 3.0})
    assert (counted.gradients, counted.hvps) == (40 * gradients, 40 * hvps)
    assert counted.seconds is not None
    assert counted.seconds > 0


def test_phases_are_added_up() -> None:
    solver, trajectory = {"kind": "euler", "step": 0.1}, {"length": 3.0}
    reptile = {"method": {"kind": "reptile"}, "share": 0.3, "trajectory": {"length": 1.0}}
    phases = [reptile, {"method": {"kind": "amaml"}, "share": 0.7}]
    counted = of(meta={"iterations": 10, "tasks_per_batch": 4, "phases": phases}, solver=solver, trajectory=trajectory)
    assert (counted.gradients, counted.hvps) == (3 * 4 * 10 + 7 * 4 * 30, 7 * 4 * 30)
    counted = of(meta={"iterations": 10_000, "phases": phases}, solver=solver, trajectory=trajectory)
    scheduled = {"length": 3.0, "schedule": [[3, 1.0]]}
    halves = [{"method": {"kind": "reptile"}, "share": 0.3}, {"method": {"kind": "reptile"}, "share": 0.7}]
    own = of(meta={"iterations": 10, "tasks_per_batch": 4, "phases": halves}, solver=solver, trajectory=scheduled)
    assert own.gradients == 3 * 4 * 30 + 7 * 4 * 10
    alone = of(meta={"iterations": 10_000}, solver=solver, trajectory=trajectory)
    assert counted.seconds is not None
    assert alone.seconds is not None
    assert counted.seconds < alone.seconds


def test_a_schedule_is_averaged_over_the_iterations() -> None:
    meta = {"iterations": 10, "tasks_per_batch": 1}
    solver = {"kind": "euler", "step": 0.1}
    scheduled = of(meta=meta, solver=solver, trajectory={"length": 1.0, "schedule": [[5, 2.0], [8, 4.0], [99, 9.0]]})
    assert scheduled.gradients == 10 * round((5 * 1.0 + 3 * 2.0 + 2 * 4.0) / 10 / 0.1)


def test_adaptive_solvers_cost_what_was_measured() -> None:
    meta = {"iterations": 1, "tasks_per_batch": 1}
    short, long = (of(meta=meta, trajectory={"length": length}) for length in (2.0, 20.0))
    assert short.gradients == pytest.approx(394, rel=0.03)
    assert long.hvps == pytest.approx(942, rel=0.02)
    fine = of(meta=meta, solver={"kind": "dopri5", "rtol": 1e-11}, runtime={"dtype": "float64"})
    assert fine.gradients == pytest.approx(10 * short.gradients, rel=0.01)


@pytest.mark.parametrize(
    ("family", "inputs"),
    [({"kind": "sinusoid"}, 1), ({"kind": "alpine", "dim": 3}, 3), ({"kind": "ratings", "dataset": str(uuid4())}, 100)],
)
def test_parameters_are_those_of_the_network(family: dict[str, Any], inputs: int) -> None:
    counted = of(family=family, model={"hidden": [40, 20]})
    assert counted.parameters == (inputs + 1) * 40 + 41 * 20 + 21


TABLE = {"kind": "table", "dataset": str(uuid4()), "task": "who", "inputs": ["a", "b", "c"], "targets": ["y"]}


@pytest.mark.parametrize(
    ("family", "inputs", "outputs"),
    [
        ({"kind": "poisson"}, 1, 1),
        ({"kind": "poisson", "dim": 2}, 2, 1),
        (TABLE, 3, 1),
        ({**TABLE, "classify": True}, 3, 2),
        ({"kind": "images", "dataset": "digits", "ways": 4}, 64, 4),
    ],
)
def test_families_of_several_outputs_and_of_physics_are_counted(
    family: dict[str, Any], inputs: int, outputs: int
) -> None:
    counted = of(family=family, model={"hidden": [40]})
    assert counted.parameters == (inputs + 1) * 40 + 41 * outputs
    assert counted.seconds is not None
    assert counted.seconds > 0
    assert counted.memory_bytes is not None


def test_a_convolution_is_counted_by_its_pixels() -> None:
    small, large = (
        of(family={"kind": "images", "dataset": "digits"}, model={"kind": "conv4", "filters": filters})
        for filters in (8, 32)
    )
    net = Conv4((1, 8, 8), 32, 3)
    assert large.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert small.seconds is not None
    assert large.seconds is not None
    assert 2 * small.seconds < large.seconds < 16 * small.seconds


@pytest.mark.parametrize(("name", "measured"), [("digits.json", 11), ("poisson.json", 17), ("digits-conv4.json", 22)])
def test_the_examples_take_what_is_said_within_the_factor_that_is_said(name: str, measured: float) -> None:
    """Seconds on one core, measured."""
    text = (Path(__file__).parents[2] / "examples" / name).read_text(encoding="utf-8")
    seconds = estimate(JobSpec.model_validate_json(text)).seconds
    assert seconds is not None
    assert measured / 3 < seconds < 3 * measured


def test_images_whose_size_nobody_knows_have_no_price() -> None:
    unknown = of(family={"kind": "images", "dataset": str(uuid4())}, model={"kind": "conv4"})
    assert (unknown.parameters, unknown.seconds, unknown.memory_bytes) == (None, None, None)
    assert unknown.gradients > 0


def test_more_work_costs_more() -> None:
    base = of()
    for parts in ({"meta": {"iterations": 1_000}}, {"model": {"hidden": [64, 64]}}, {"trajectory": {"length": 4.0}}):
        more = of(**parts)
        assert more.seconds is not None
        assert base.seconds is not None
        assert more.seconds > base.seconds


def test_a_dry_run_checks_completes_and_queues_nothing(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", params={"dry_run": "true"}, json=SPEC, headers={"Idempotency-Key": "dry"})
    assert answer.status_code == 200
    assert answer.json()["spec"] == JobSpec.model_validate(SPEC).model_dump(mode="json")
    assert answer.json()["estimate"]["parameters"] == 1_153
    assert http.get("/v1/jobs").json()["data"] == []
    check_problem(http.post("/v1/jobs", params={"dry_run": "true"}, json={"family": 1}), 422, "invalid")
    unknown = {"family": {"kind": "ratings", "dataset": str(uuid4())}}
    check_problem(http.post("/v1/jobs", params={"dry_run": "true"}, json=unknown), 422, "invalid")
    assert http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "dry"}).status_code == 201
