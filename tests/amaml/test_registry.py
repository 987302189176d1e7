"""What the registry makes of a method's or an adjoint's spec."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, get_args

import pytest

import amaml
from amaml.registry import build_adjoint, build_estimator, build_solver
from amaml.spec import AdjointSpec, AmamlSpec, SolverSpec, methods

ADJOINTS = get_args(get_args(AdjointSpec)[0])


@pytest.mark.parametrize("kind", methods())
def test_every_methods_function_takes_what_its_spec_gives(kind: str) -> None:
    spec = methods()[kind]()
    estimate = build_estimator(spec)
    assert (estimate is None) == (kind == "random")
    if isinstance(estimate, partial):
        inspect.signature(estimate.func).bind("params", "support", "query", "tasks", **estimate.keywords)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_adjoint_takes_its_specs_fields(adjoint: Any) -> None:
    assert type(build_adjoint(adjoint())).__name__.lower() == adjoint().kind


def test_an_adjoint_is_built_as_the_spec_says() -> None:
    spec = AmamlSpec.model_validate({"adjoint": {"kind": "interpolated", "scheme": "heun", "checkpoints": 7}})
    assert spec.adjoint is not None
    assert build_adjoint(spec.adjoint) == amaml.Interpolated("heun", checkpoints=7)
    estimate = build_estimator(spec)
    assert isinstance(estimate, partial)
    assert estimate.keywords["adjoint"] == amaml.Interpolated("heun", checkpoints=7)


def test_the_solver_chooses_where_the_spec_names_no_adjoint() -> None:
    estimate = build_estimator(AmamlSpec(proximal=0.5))
    assert isinstance(estimate, partial)
    assert estimate.keywords == {"proximal": 0.5, "proximal_in_query": False}


@pytest.mark.parametrize("kind", ["euler", "heun", "rk4", "bosh3", "dopri5", "midpoint", "dopri8"])
def test_every_solver_of_the_spec_is_built(kind: str) -> None:
    spec = SolverSpec.model_validate({"kind": kind, "guard": False})
    solver = build_solver(spec)
    assert solver.guard is False
    if spec.step is None:
        assert not hasattr(solver, "step") or solver.step is None
    else:
        assert getattr(solver, "step", None) == 0.01
