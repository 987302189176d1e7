"""Presets: what they fill in, that what a spec says itself stays, and that what was written back means the same again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from amaml.spec import AmamlSpec, JobSpec, MetaSpec, ReptileSpec, RuleBroken, SinusoidSpec, families, methods

DATASET = "0198b2a0-0000-7000-8000-000000000002"
NEEDED: dict[str, dict[str, Any]] = {
    "ratings": {"dataset": DATASET},
    "images": {"dataset": "digits"},
    "table": {"dataset": DATASET, "task": "t", "inputs": ["x"], "targets": ["y"]},
}


def job(kind: str = "cosmixture", **parts: Any) -> JobSpec:
    family = {"kind": kind, **NEEDED.get(kind, {})}
    return JobSpec.model_validate_json(json.dumps({"family": family, **parts}))


@pytest.mark.parametrize("preset", [None, "default", "paper"])
@pytest.mark.parametrize("kind", list(families()))
def test_what_is_written_back_means_the_same_again(kind: str, preset: str | None) -> None:
    spec = job(kind, **({} if preset is None else {"preset": preset}))
    assert spec.preset == (preset or "default")
    assert JobSpec.model_validate_json(spec.canonical()) == spec
    assert JobSpec.model_validate(spec.model_dump()) == spec
    assert (spec.meta.phases is None) == (preset == "paper")
    assert spec.evaluation.every == max(1, spec.meta.iterations // 5)


def test_a_spec_without_method_and_meta_gets_the_default() -> None:
    assert job() == job(preset="default")
    assert job(trajectory={}, solver={}, evaluation={}) == job()
    assert JobSpec(family=SinusoidSpec()) == job("sinusoid")
    for parts in ({"preset": None}, {"method": {"kind": "amaml"}}, {"meta": {"iterations": 7}}):
        spec = job(**parts)
        assert spec.preset is None
        assert spec.method == AmamlSpec(adjoint=spec.method.adjoint)  # type: ignore[union-attr]
        assert spec.meta == MetaSpec(iterations=spec.meta.iterations)
        assert spec.solver.kind == "dopri5"


def test_the_default_is_reptile_and_then_exact_gradients_with_learned_rates() -> None:
    spec = job()
    first, last = spec.meta.phases or []
    assert first.method == ReptileSpec()
    assert isinstance(last.method, AmamlSpec)
    assert last.method.learn == ["rates"]
    assert last.clip is not None
    assert spec.family.queries == "all"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", list(families()))
def test_its_phases_are_what_they_are_without_the_preset(kind: str) -> None:
    written = job(kind).model_dump(mode="json") | {"preset": None}
    alone = JobSpec.model_validate_json(json.dumps(written))
    assert job(kind).phases == alone.phases
    for (_, spec), phase in zip(alone.phases, alone.meta.phases or [], strict=True):
        assert (spec.meta.clip, spec.meta.optimizer) == (phase.clip, phase.optimizer)


def test_what_the_spec_says_itself_stays() -> None:
    own = {
        "family": {"kind": "cosmixture", "queries": 30},
        "trajectory": {"length": 1.0},
        "solver": {"kind": "dopri5", "rtol": 1e-4},
        "evaluation": {"every": 7, "epochs": 3},
    }
    spec = JobSpec.model_validate_json(json.dumps(own))
    assert spec.preset == "default"
    assert spec.family.queries == 30  # type: ignore[attr-defined]
    assert (spec.trajectory.length, spec.solver.kind, spec.solver.rtol) == (1.0, "dopri5", 1e-4)
    assert (spec.evaluation.every, spec.evaluation.epochs) == (7, 3)
    meta = {"iterations": 40, "tasks_per_batch": 3, "average": 0.9}
    named = job(preset="default", meta=meta)
    assert {name: getattr(named.meta, name) for name in meta} == meta
    assert named.meta.phases == job().meta.phases
    phases = [{"method": {"kind": "fomaml"}, "share": 1.0}]
    assert [phase.method.kind for phase in job(preset="default", meta={"phases": phases}).meta.phases or []] == [
        "fomaml"
    ]


@pytest.mark.parametrize("kind", list(methods()))
def test_a_method_by_itself_gets_the_clip_the_queries_and_the_time_of_the_default(kind: str) -> None:
    spec, whole = job(preset="default", method={"kind": kind}), job()
    last = (whole.meta.phases or [])[-1]
    assert spec.method.kind == kind
    assert spec.meta.phases is None
    assert (spec.meta.clip, spec.meta.optimizer) == (last.clip, last.optimizer)
    assert (spec.family, spec.trajectory, spec.solver) == (whole.family, whole.trajectory, whole.solver)
    costs = [phase.share * phase.method.cost for phase in whole.meta.phases or []]
    assert spec.meta.iterations * spec.method.cost == pytest.approx(whole.meta.iterations * sum(costs), rel=1e-3)


def test_the_papers_setting() -> None:
    spec = job(preset="paper")
    assert isinstance(spec.method, AmamlSpec)
    assert (spec.method.learn, spec.meta.clip) == ([], None)
    assert (spec.trajectory.length, spec.solver.step) == (3.0, 0.05)
    assert job(preset="paper", method={"kind": "reptile"}).meta == spec.meta
    ratings = job("ratings", preset="paper")
    assert (ratings.trajectory.length, ratings.solver.step) == (0.5, 0.01)


@pytest.mark.parametrize("field", ["optimizer", "clip"])
def test_what_no_phase_would_use_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=f"preset default trains in phases, each with its own {field}") as caught:
        job(preset="default", meta={field: {}})
    broken = caught.value.errors()[0]["ctx"]["error"]
    assert isinstance(broken, RuleBroken)
    assert broken.field == ("meta", field)
    assert job(preset="default", method={"kind": "amaml"}, meta={field: {}}).meta.phases is None


@pytest.mark.parametrize(
    ("parts", "at"),
    [
        ({"preset": "best"}, ("preset",)),
        ({"preset": ["default"]}, ("preset",)),
        ({"solver": 3}, ("solver",)),
        ({"meta": [1], "preset": "default"}, ("meta",)),
        ({"preset": "default", "meta": {"iterations": "x"}}, ("meta", "iterations")),
        ({"preset": "default", "meta": {"iterations": None}}, ("meta", "iterations")),
        ({"preset": "paper", "meta": {"iterations": None}}, ("meta", "iterations")),
        ({"preset": "default", "meta": {"iterations": 10**9}}, ("meta", "iterations")),
        ({"preset": "default", "evaluation": {"every": None}}, ("evaluation", "every")),
        ({"preset": "default", "meta": {"phases": [3]}}, ("meta", "phases", 0)),
        ({"preset": "default", "meta": {"phases": [{"method": {"kind": "reptile"}}]}}, ("meta", "phases", 0, "share")),
        ({"preset": "default", "method": {"kind": "nothing"}}, ("method",)),
    ],
    ids=str,
)
def test_garbage_is_told_as_without_a_preset(parts: dict[str, Any], at: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**parts)
    assert at in [error["loc"] for error in caught.value.errors()]


@pytest.mark.parametrize("family", ["x", 3, [], {"kind": ["alpine"]}, {"kind": "nothing"}, {}], ids=str)
def test_a_family_that_is_none_is_told(family: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"family": family})
    assert caught.value.errors()[0]["loc"][0] == "family"
