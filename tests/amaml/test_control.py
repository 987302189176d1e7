"""Error control on λ: correct where the state's error test alone would let steps grow; the same bits for any checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import amaml
from amaml.flow.norms import TensorNorms, scales
from amaml.flow.result import Result
from amaml.kernel import disabled
from tests.amaml.kernel_problems import both, distance, regression
from tests.amaml.problems import flat

FLOAT64 = torch.float64


@pytest.mark.parametrize("curvature", [2.0, 10.0, 40.0])
@pytest.mark.parametrize("length", [0.1, 1.0])
@pytest.mark.parametrize(
    "solver", [amaml.Dopri5(1e-4), amaml.Dopri5(1e-6), amaml.Dopri5(1e-9), amaml.Bosh3(1e-5)], ids=repr
)
def test_a_start_at_rest_gives_the_closed_form(solver: Any, length: float, curvature: float) -> None:
    """u never moves, so that the state's error is zero; λ shrinks by e^(−curvature·T)."""
    answer = amaml.meta_gradient(
        torch.zeros(3, dtype=FLOAT64),
        lambda u, task: 0.5 * curvature * (u - task).square().sum(),
        lambda u, _: u.sum(),
        torch.zeros(1, 3, dtype=FLOAT64),
        length=length,
        solver=solver,
    )
    exact = math.exp(-curvature * length)
    assert ((answer.grad - exact).abs() < 100 * solver.rtol * exact).all()


@pytest.mark.parametrize(("rise", "width"), [(10.0, 0.1), (30.0, 0.1), (300.0, 0.01)])
def test_a_direction_that_stiffens_late_gives_the_closed_form(rise: float, width: float) -> None:
    """s moves at speed 1; when it passes 1, the curvature along z, which is at rest, rises from 1 to 1 + rise."""

    def support(params: dict[str, Tensor], _: Tensor) -> Tensor:
        curvature = 1 + rise * torch.sigmoid((params["s"] - 1) / width)
        return 0.5 * curvature * params["z"].square() - params["s"]

    start = {"s": torch.zeros((), dtype=FLOAT64), "z": torch.zeros((), dtype=FLOAT64)}
    answer = amaml.meta_gradient(start, support, lambda p, _: p["z"], torch.zeros(1, 1, dtype=FLOAT64), length=1.3)
    times = np.linspace(0, 1.3, 400_001)
    exact = math.exp(-np.trapezoid(1 + rise / (1 + np.exp(-(times - 1) / width)), times))
    assert answer.grad["z"].item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("path", ["kernel", "batched"])
def test_checkpoints_change_no_bit(path: str) -> None:
    problem = regression([2, 12, 1], batch=2, points=(20, 9))
    arguments: dict[str, Any] = {**problem, "horizons": [(1.0, 1.0), (8.0, 0.5)], "solver": amaml.Dopri5(1e-9)}

    def solved(checkpoints: int | None) -> Tensor:
        adjoint = amaml.Interpolated(checkpoints=checkpoints)
        if path == "kernel":
            return flat(amaml.meta_gradient(**arguments, adjoint=adjoint).per_task, 1)
        with disabled():
            return flat(amaml.meta_gradient(**arguments, adjoint=adjoint).per_task, 1)

    whole = solved(None)
    for checkpoints in (1, 2, 5, 100):
        assert torch.equal(solved(checkpoints), whole)


@pytest.mark.parametrize("solver", [amaml.Dopri5(1e-4), amaml.Dopri5(1e-8), amaml.Bosh3(1e-5)], ids=repr)
def test_the_kernel_equals_the_batched_path(solver: Any) -> None:
    problem = regression([3, 5, 2], "sigmoid", points=(30, 10))
    rates = {name: torch.full_like(value, 0.7) for name, value in problem["params"].items()}
    wanted = ("length", "rates", "proximal")
    a, b = both(
        **problem, solver=solver, rates=rates, proximal=0.3, proximal_in_query=True,
        horizons=[(0.2, 1.0), (3.0, 0.5)], wrt=list(wanted),
    )  # fmt: skip
    assert distance(a, b, wanted) < 1e-12
    assert torch.equal(a.stats.steps, b.stats.steps)
    assert torch.allclose(a.stats.lambda_max, b.stats.lambda_max, rtol=1e-9)


def test_a_zero_adjoint_costs_few_evaluations() -> None:
    """λ is zero throughout, so that every step is as long as allowed."""
    answer = amaml.meta_gradient(
        torch.ones(3, dtype=FLOAT64),
        lambda u, _: 20 * u.square().sum(),
        lambda u, _: 0 * u.sum(),
        torch.zeros(1, 1, dtype=FLOAT64),
        length=5.0,
    )
    assert not answer.grad.any()
    assert answer.stats.hvps.item() < answer.stats.gradients.item()


def test_a_failure_of_the_adjoint_has_the_time_of_the_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three adjoint steps from T = 2 end far from 0, where reversed time would begin."""
    monkeypatch.setattr("amaml.adjoint.interpolated.MAX_STEPS", 3)
    problem = regression([1, 8, 1])
    with disabled(), pytest.raises(amaml.SolveError) as raised:
        amaml.meta_gradient(**problem, length=2.0, solver=amaml.Dopri5(1e-9))
    assert raised.value.code is Result.BUDGET_SPENT
    assert all(1.5 < failure.time < 2.0 for failure in raised.value.failures)


def test_units_of_the_parameters_do_not_matter() -> None:
    """Tolerances scale with a tensor's size: the same number of steps gives the same relative accuracy."""

    def solved(unit: float) -> amaml.MetaGradient:
        theta = {"u": unit * torch.tensor([1.0, -2.0], dtype=FLOAT64)}
        return amaml.meta_gradient(
            theta,
            lambda p, _: 2 * p["u"].square().sum(),
            lambda p, _: p["u"].sum() / unit,
            torch.zeros(1, 1, dtype=FLOAT64),
            length=3.0,
        )

    one, tiny = solved(1.0), solved(2.0**-30)
    assert torch.equal(one.stats.steps, tiny.stats.steps)
    assert torch.allclose(one.grad["u"], 2.0**-30 * tiny.grad["u"], rtol=1e-12)


def test_norms_are_those_of_each_tensor_however_small() -> None:
    v = torch.tensor([[3.0, 4.0, 1e-200, 0.0, 12.0], [0.0, 0.0, 0.0, 3e-200, 4e-200]], dtype=FLOAT64)
    norms = TensorNorms([2, 3], v)(v)
    torch.testing.assert_close(norms, torch.tensor([[5.0, 12.0], [0.0, 5e-200]], dtype=FLOAT64), rtol=1e-12, atol=0)
    theta = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=FLOAT64)
    assert scales(theta, [2, 2]).tolist() == pytest.approx([12.5**0.5] * 2 + [2.5e-3] * 2)
    assert scales(torch.zeros(3), [3]).tolist() == [1.0] * 3
