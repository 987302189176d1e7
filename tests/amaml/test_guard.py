"""The guard in the hardest cases: a direction that becomes stiff late, and fixed steps between two estimates."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import amaml
from amaml.kernel.library import disabled, kernel
from amaml.models.losses import regression_losses


def support_that_stiffens(u: Tensor, _: Tensor) -> Tensor:
    """The curvature is 10 along x; along y it is 1, and 100 once z, which moves at speed 1 from −5, has passed 0. So dJ/dy of
    the flow is about e^(−100 (T−5)), and it blows up if the guard only follows x."""
    x, y, z = u
    return 5 * x.square() + 0.5 * (1 + 99 * torch.sigmoid(4 * z)) * y.square() - z


def solved(solver: Any, length: float, dtype: torch.dtype) -> amaml.MetaGradient:
    theta = torch.tensor([0.3, 0.0, -5.0], dtype=dtype)
    tasks = torch.zeros(1, 1, dtype=dtype)
    return amaml.meta_gradient(
        theta,
        support_that_stiffens,
        lambda u, _: u.sum(),
        tasks,
        length=length,
        solver=solver,
        adjoint=amaml.Discrete(),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [5.5, 6.0, 7.0, 10.0])
@pytest.mark.parametrize("solver", [amaml.Dopri5(1e-6), amaml.Bosh3(1e-5)], ids=["dopri5", "bosh3"])
def test_a_direction_that_becomes_stiff_late_is_found(solver: Any, length: float, dtype: torch.dtype) -> None:
    answer = solved(solver, length, dtype)
    assert answer.grad[1].abs() < 1e-9
    assert answer.stats.lambda_max[0] > 80


@pytest.mark.parametrize("length", [5.5, 6.0, 7.0, 10.0])
@pytest.mark.parametrize("solver", [amaml.Euler(0.15), amaml.RK4(0.2)], ids=["euler", "rk4"])
def test_fixed_steps_that_become_unstable_between_estimates_fail(solver: Any, length: float) -> None:
    with pytest.raises(amaml.SolveError, match="outside the stability region"):
        solved(solver, length, torch.float64)


@pytest.mark.skipif(kernel() is None, reason="no compiler has built the kernel here")
@pytest.mark.parametrize(
    ("seed", "solver", "step"), [(66, amaml.RK4, 0.633), (267, amaml.Euler, 0.544), (426, amaml.Euler, 0.348)]
)
def test_the_kernels_reverse_steps_fail_as_the_batched_paths(seed: int, solver: Any, step: float) -> None:
    """In fifteen steps λmax is estimated only at both ends, where these problems aren't stiff."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = amaml.MLP(in_features=1, hidden=[4], out_features=1, activation="tanh")
    scale = float(torch.rand((), generator=generator) * 3 + 1)
    params = {name: parameter.detach() * scale for name, parameter in net.named_parameters()}
    x, y = torch.randn(1, 5, 1, generator=generator) * 2, torch.randn(1, 5, 1, generator=generator) * 3
    tasks = {"support_x": x, "support_y": y, "query_x": x, "query_y": -y}

    def failure() -> Any:
        with pytest.raises(amaml.SolveError) as raised:
            amaml.meta_gradient(params, *regression_losses(net), tasks, length=15 * step, solver=solver(step))
        return raised.value.failures[0]

    own = failure()
    with disabled():
        batched = failure()
    assert (own.code, own.task) == (batched.code, batched.task)
    for name in ("time", "value", "bound"):
        assert getattr(own, name) == pytest.approx(getattr(batched, name), rel=1e-3), name


def test_the_step_that_a_failure_names_works() -> None:
    """The named step must allow for the rounding of N: a step of 0.74 would again give a single step of 1."""
    theta, tasks = torch.ones(2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def solve(step: float) -> None:
        amaml.meta_gradient(
            theta,
            lambda u, _: 1.2 * u.square().sum(),
            lambda u, _: u.sum(),
            tasks,
            length=1.0,
            solver=amaml.Euler(step),
        )

    with pytest.raises(amaml.SolveError) as raised:
        solve(0.9)
    named = re.search(r"use a step below (\S+),", str(raised.value))
    assert named is not None
    for share in (1.0, 0.999, 0.9, 0.7):
        solve(share * float(named[1]))


def test_a_loss_without_curvature_is_solved() -> None:
    """Its gradient is constant, which torch.func returns as an expanded view that can't be written to."""
    theta, tasks = torch.zeros(3, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    for solver in (amaml.Dopri5(), amaml.Euler(0.1), amaml.TorchDiffEq("dopri8"), amaml.TorchDiffEq("rk4", step=0.1)):
        answer = amaml.meta_gradient(
            theta, lambda u, _: u.sum(), lambda u, _: u.square().sum(), tasks, length=1.0, solver=solver
        )
        torch.testing.assert_close(answer.grad, torch.full_like(theta, -2.0))
