"""Where a certificate is hard to have: at kinks, without any gradient, beyond the budget, for networks that can't be copied.

It is as large as the error, or infinite with a sentence that says why.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amaml
from amaml.methods.tangent import Tangents, Undecided, along_flow
from tests.amaml.certificates import FLOAT64, THETA, certified, judged
from tests.amaml.problems import Tensors, cosines, network, start
from tests.amaml.quadratics import quadratic, quadratic_support


def test_a_kink_in_which_the_flow_stays_is_no_silent_one() -> None:
    """|u| from (1, .3): the second reaches 0 at .3 and stays, so J's gradient is (1, 0). Past the kink it would be (1, 1)."""
    theta, ones = torch.tensor([1.0, 0.3], dtype=FLOAT64), torch.ones(1, 2, dtype=FLOAT64)
    for rtol in (1e-2, 1e-3, 1e-6):
        certificate = judged(
            ones, theta, lambda u, _: u.abs().sum(), lambda u, t: (t * u).sum(), ones, length=0.5,
            solver=amaml.Dopri5(rtol),
        )  # fmt: skip
        assert certificate.error > 0.3
        assert (certificate.reasons[0] is None) == bool(certificate.error.isfinite())


@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
def test_a_kink_that_the_flow_crosses_changes_the_tangent(rtol: float) -> None:
    """Past a corner u moves thrice as fast, so δ = 3 there, though the curvature is 0 on both sides. Differences that reach
    across give e^(4/3): their jump is right to first order."""
    theta, task = torch.tensor([-0.4], dtype=FLOAT64), torch.zeros(1, 1, dtype=FLOAT64)

    def error(gradient: float) -> float:
        given = torch.tensor([[gradient]], dtype=FLOAT64)
        certificate = judged(
            given, theta, lambda u, _: -(u + 2 * u.relu()).sum(), lambda u, _: u.sum(), task, length=1.0,
            solver=amaml.Dopri5(rtol), spent=2000,
        )  # fmt: skip
        return float(certificate.error)

    assert error(1.0) == pytest.approx(1 - math.exp(-4 / 3), rel=0.01)
    assert error(3.0) == pytest.approx(1 - 3 * math.exp(-4 / 3), rel=0.01)


def test_kinks_of_a_discrete_map_are_on_one_side_or_the_other() -> None:
    net, tasks = network([32, 32], FLOAT64, "relu"), cosines(2, 40)
    _, certificate = certified(start(net), *amaml.regression_losses(net), tasks, length=0.5, solver=amaml.Euler(0.01))
    assert certificate.reasons == (None, None)
    assert (certificate.error < 1e-6).all()


def undecided(params: Tensor, support: Any, query: Any, **question: Any) -> str:
    tasks = torch.ones(1, len(params), dtype=params.dtype)
    given = {"length": 1.0, **question}
    certificate = judged(torch.ones(1, len(params), dtype=params.dtype), params, support, query, tasks, **given)
    assert certificate.error.isinf().all()
    (reason,) = certificate.reasons
    assert reason is not None
    assert reason.startswith("task 0: ")
    return reason


def linear(u: Tensor, task: Tensor) -> Tensor:
    return (task * u).sum()


def test_what_can_not_be_decided_is_infinite_and_says_why() -> None:
    ones = torch.ones(2, dtype=FLOAT64)
    assert "infinite or NaN" in undecided(0.5 * ones, lambda u, _: u.square().sum() / 0, linear)
    assert "query loss's gradient became infinite" in undecided(ones, linear, lambda u, _: u.sum() / 0)
    assert "so small a gradient" in undecided(ones, lambda u, _: 20 * u[0].square(), lambda u, _: u[0], length=3.0)
    assert "isn't 0" in undecided(ones, linear, lambda u, _: 0 * u.sum())


def test_a_spent_budget_is_said() -> None:
    theta = np.ones(1)
    tangents = Tangents(lambda points: 50 * points, theta, np.ones(1), 0.0, np.ones((1, 1)), np.ones(1))
    with pytest.raises(Undecided, match="exceeded the budget of 40 evaluations of the flow at t="):
        along_flow(tangents, [2.0], 1e-9, 40)


def test_no_gradient_where_there_is_none_is_right() -> None:
    zeros = torch.zeros(2, 5, dtype=FLOAT64)
    for solver in (amaml.Dopri5(), amaml.Euler(0.1)):
        certificate = judged(
            zeros, THETA, quadratic_support, lambda u, _: 0 * u.sum(), quadratic(2, 5, 5), length=1.0, solver=solver
        )
        assert certificate.error.tolist() == [0.0, 0.0]
        assert certificate.reasons == (None, None)


def test_a_network_that_can_not_be_copied_is_certified() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    net.left_over = net[0].weight * 2  # what came out of a computation can't be copied
    params = dict(net.named_parameters())
    _, certificate = certified(params, *amaml.regression_losses(net), cosines(2, 5, torch.float32), length=0.2)
    assert certificate.error.max() < 1e-4


def test_networks_with_tensors_of_their_own_are_certified() -> None:
    """A frozen body, and statistics that aren't learned."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.BatchNorm1d(6).eval(), torch.nn.Tanh())
    net = torch.nn.Sequential(body, torch.nn.Linear(6, 1))
    head = {name: parameter for name, parameter in net.named_parameters() if name.startswith("1.")}
    tasks = cosines(2, 5, torch.float32)
    _, certificate = certified(head, *amaml.regression_losses(net), tasks, length=0.5)
    assert certificate.error.max() < 1e-4
    frozen = torch.randn(1, 3)

    def loss(params: Tensors, task: Tensors) -> Tensor:
        return (task["support_x"] @ frozen @ params["w"]).square().mean()

    with pytest.raises(ValueError, match="hold float32 tensors of their own"):
        amaml.meta_gradient({"w": torch.ones(3, 1)}, loss, loss, tasks, length=0.5, certify=True)
