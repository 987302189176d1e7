"""Methods in a spec: one word suffices, and what makes no sense together names the field to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from amaml import spec as specs
from amaml.spec import JobSpec, RuleBroken

JOB = "0198b2a0-0000-7000-8000-000000000002"


def job(method: dict[str, Any], **parts: Any) -> JobSpec:
    return JobSpec.model_validate_json(json.dumps({"family": {"kind": "sinusoid"}, "method": method, **parts}))


@pytest.mark.parametrize("kind", list(specs.methods()))
def test_one_word_suffices(kind: str) -> None:
    spec = job({"kind": kind})
    assert spec.method.kind == kind
    assert (spec.solver.kind, spec.solver.step) == (("euler", 0.01) if kind in ("maml", "maml1") else ("dopri5", None))
    assert JobSpec.model_validate_json(spec.canonical()) == spec
    assert JobSpec.model_validate({"family": specs.SinusoidSpec(), "method": specs.methods()[kind]()}) == spec


def test_every_method_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert all(f"\n**`{kind}`" in text and f"\n| `{kind}` |" in text for kind in specs.methods())


def test_a_method_without_its_kind_is_amaml() -> None:
    assert job({"proximal": 0.5}) == job({"kind": "amaml", "proximal": 0.5})


def test_maml_takes_a_step_without_a_solvers_name() -> None:
    assert job({"kind": "maml"}, solver={"step": 0.1}).solver.kind == "euler"


SCHEDULE = {"schedule": [[1, 1.0]]}
HORIZONS = {"horizons": [{"at": 1.0}]}


@pytest.mark.parametrize(
    ("method", "parts", "field", "remedy"),
    [
        ({"kind": "maml"}, {"solver": {"kind": "dopri5"}}, ("solver", "kind"), "set solver.kind to euler"),
        ({"kind": "maml1"}, {"solver": {"kind": "heun"}}, ("solver", "kind"), "set solver.kind to euler"),
        ({"kind": "maml1"}, {"trajectory": SCHEDULE}, ("trajectory", "schedule"), "set trajectory.schedule to null"),
        ({"kind": "maml", "steps": 5}, {"trajectory": HORIZONS}, ("trajectory", "horizons"), "horizons to null"),
        (
            {"kind": "fomaml"},
            {"runtime": {"certify_every": 5}},
            ("runtime", "certify_every"),
            "one of amaml, comln, maml",
        ),
        ({"kind": "random"}, {"meta": {"init_from": {"job": JOB}}}, ("meta", "init_from"), "init_from to null"),
        ({"adjoint": {"kind": "interpolated"}}, {"solver": {"kind": "dopri8"}}, ("method", "adjoint"), "discrete"),
    ],
)
def test_what_makes_no_sense_together(
    method: dict[str, Any], parts: dict[str, Any], field: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(ValidationError, match=remedy) as refused:
        job(method, **parts)
    broken = refused.value.errors()[0]["ctx"]["error"]
    assert isinstance(broken, RuleBroken)
    assert broken.field == field


def test_what_makes_sense_together() -> None:
    job({"kind": "maml"}, trajectory=SCHEDULE, runtime={"certify_every": 5})
    job({"kind": "fomaml"}, trajectory=HORIZONS, solver={"kind": "dopri8"})


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "imaml", "proximal": 0.0},
        {"kind": "imaml", "cg_steps": 0},
        {"kind": "imaml", "damping": -1.0},
        {"kind": "maml", "steps": 0},
        {"kind": "reptile", "proximal": 1.0},
        {"kind": "protomaml"},
    ],
)
def test_bounds(method: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(method)
