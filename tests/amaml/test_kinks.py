"""Flows that meet a kink of their loss at which λ would jump are refused, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import amaml
from amaml.flow.result import Result, SolveError

ADAPTIVE = [amaml.Dopri5(1e-2), amaml.Dopri5(1e-3), amaml.Dopri5(1e-6), amaml.Bosh3(1e-3), amaml.Bosh3(1e-5)]


def solved(loss: Any, start: list[float], solver: Any, length: float = 0.5, **more: Any) -> amaml.MetaGradient:
    """Two tasks: the second's loss is doubled."""
    theta = {"u": torch.tensor(start, dtype=more.pop("dtype", torch.float64))}
    tasks = torch.ones(2, len(start)).to(theta["u"]) * torch.tensor([[1.0], [2.0]]).to(theta["u"])

    def support(params: dict[str, Tensor], task: Tensor) -> Tensor:
        value: Tensor = loss(params["u"], task[0])
        return value

    return amaml.meta_gradient(
        theta, support, lambda params, task: (task * params["u"]).sum(), tasks, length=length, solver=solver, **more
    )


def refused(*args: Any, **more: Any) -> SolveError:
    with pytest.raises(SolveError, match="meets a kink of the support loss") as caught:
        solved(*args, **more)
    assert {failure.code for failure in caught.value.failures} == {Result.KINK}
    return caught.value


POINTS = torch.linspace(-1, 1, 23, dtype=torch.float64)
WAVES = torch.sin(7 * POINTS) / 3
RESTING = 1.0 * WAVES + 0.3 * POINTS
SLIDING = {
    "absolute values": lambda u, scale: scale * u.abs().sum(),
    "one among many": lambda u, scale: scale * (u[1].abs() + 3 * u[0]),
    "a small kink": lambda u, scale: scale * (0.1 * (u[1] - 0.25).abs() + 30 * u[0]),
    "between two parameters": lambda u, scale: scale * ((u[0] - u[1]).abs() + 0.5 * (u[0] + u[1])),
    "a hinge": lambda u, scale: scale * (torch.relu(0.1 - u[1]) * 4 + u.sum()),
    "curved": lambda u, scale: scale * ((u.square().sum() - 0.5).abs() + 0.2 * u[1]),
}
CROSSED = {
    "relu": lambda u, scale: scale * (u.sum() + 0.5 * torch.relu(u[1] - 0.2)),
    "a leaky relu": lambda u, scale: -scale * torch.nn.functional.leaky_relu(u - 0.5, 0.25).sum(),
    "the larger of two": lambda u, scale: scale * torch.maximum(2 * u[0], u[0] + 0.8),
    "with curvature": lambda u, scale: scale * (0.5 * u.square().sum() + torch.relu(u[1] - 0.25)),
}


@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("adjoint", [None, amaml.Backsolve()], ids=["interpolated", "backsolve"])
@pytest.mark.parametrize("loss", SLIDING.values(), ids=SLIDING)
def test_a_flow_that_slides_along_a_kink_is_refused(solver: Any, adjoint: Any, loss: Any) -> None:
    error = refused(loss, [1.0, 0.3], solver, length=1.0, adjoint=adjoint)
    assert all(0 < failure.time <= 1.0 and failure.value > 1 for failure in error.failures)


@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("loss", CROSSED.values(), ids=CROSSED)
def test_a_flow_that_crosses_a_kink_is_refused(solver: Any, loss: Any) -> None:
    error = refused(loss, [1.0, 0.3], solver)
    assert all(0 <= failure.time <= 0.5 for failure in error.failures)


def test_the_discrete_adjoint_differentiates_the_steps_whatever_they_met() -> None:
    """It differentiates the steps that were taken, so it lacks the factor by which the flow's gradient jumps."""
    own = solved(CROSSED["relu"], [1.0, 0.3], amaml.Dopri5(1e-6), adjoint=amaml.Discrete())
    assert torch.equal(own.per_task["u"], torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 0.0]], ids=["all", "one"])
def test_a_flow_that_starts_in_a_kink_is_refused(start: list[float], dtype: torch.dtype) -> None:
    """The flow stays in the kink, so the derivative in that direction is 0, but the adjoint equation gives 1."""
    error = refused(SLIDING["absolute values"], start, amaml.Dopri5(1e-4), dtype=dtype)
    assert [failure.time for failure in error.failures] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
@pytest.mark.parametrize(
    "loss",
    {
        "a kink that lies elsewhere": lambda u, scale: scale * (u.sum() + 0.5 * torch.relu(u[1] - 0.31)),
        "a kink that is too small": lambda u, scale: scale * (u.sum() + 1e-7 * torch.relu(u[1] - 0.2)),
        "rounded off": lambda u, scale: scale * torch.nn.functional.huber_loss(u, torch.zeros_like(u), reduction="sum"),
        "narrowly rounded off": lambda u, scale: scale * torch.nn.functional.softplus(u, beta=500).sum(),
        "stiff": lambda u, scale: scale * (100 * u[0].square() + 0.5 * u[1].square()),
        "a bump of curvature": lambda u, scale: (
            scale * (-u[0] + 0.5 * torch.exp(-((u[0] - 1.2) / 0.02).square()) * u[1].square())
        ),
        "at rest": lambda u, scale: scale * 20 * (u - torch.tensor([1.0, 0.3]).to(u)).square().sum(),
        "at rest by cancellation": lambda u, scale: (
            scale * 20 * (u[0] * WAVES.to(u) + u[1] * POINTS.to(u) - RESTING.to(u)).square().mean()
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_no_other_flow_is_refused(solver: Any, loss: Any, dtype: torch.dtype) -> None:
    assert bool(solved(loss[1], [1.0, 0.3], solver, length=0.4, dtype=dtype).per_task["u"].isfinite().all())


def test_only_the_tasks_that_meet_it_are_named() -> None:
    error = refused(SLIDING["absolute values"], [1.0, 0.3], amaml.Dopri5(1e-4), length=0.25)
    assert [failure.task for failure in error.failures] == [1]  # it meets the kink at .15, the other task at .3
    assert error.failures[0].time == pytest.approx(0.15, abs=0.01)


def test_a_flow_that_stops_short_of_a_kink_is_answered() -> None:
    own = solved(SLIDING["absolute values"], [1.0, 0.3], amaml.Dopri5(1e-4), length=0.14)
    assert torch.allclose(own.per_task["u"], torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64))
