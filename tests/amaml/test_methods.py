"""The other estimators against closed forms and unrolled oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import amaml
from amaml.methods.fomaml.gradient import fomaml
from amaml.methods.imaml.gradient import imaml
from amaml.methods.maml.gradient import maml
from amaml.methods.reptile.gradient import reptile
from tests.amaml.problems import apart, cosines, flat, network, start
from tests.amaml.quadratics import flow_of_quadratic, quadratic, quadratic_query, quadratic_support

THETA = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("asked", "steps"), [({"length": 0.3}, 6), ({"steps": 4}, 4), ({"steps": 1, "length": 9.0}, 1)]
)
def test_maml_of_a_quadratic(asked: dict[str, Any], steps: int) -> None:
    """u_N = a + (I−hA)^N (θ−a), so that the gradient is (I−hA)^N ∇L_qry(u_N)."""
    tasks, h = quadratic(3, 5, 10), 0.05
    shrink = torch.matrix_power(torch.eye(5, dtype=torch.float64) - h * tasks["A"], steps)
    u = tasks["a"] + (shrink @ (THETA - tasks["a"]).unsqueeze(-1)).squeeze(-1)
    gradient = (shrink @ (2 * (u - tasks["b"]) + 0.4 * u.pow(3)).unsqueeze(-1)).squeeze(-1)
    answer = maml(THETA, quadratic_support, quadratic_query, tasks, solver=amaml.Euler(h), **asked)
    assert apart(answer.adapted, u) < 1e-12
    assert apart(answer.per_task, gradient) < 1e-12
    assert (answer.stats.steps == steps).all()


def test_maml_equals_backpropagation_through_unrolled_steps() -> None:
    net, tasks = network([6]), cosines(2, 9)
    theta = start(net)
    support, query = amaml.regression_losses(net)
    answer = maml(theta, support, query, tasks, solver=amaml.Euler(0.1), steps=5)
    for task in range(2):
        own = {name: rows[task] for name, rows in tasks.items()}
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
        u = dict(leaves)
        for _ in range(5):
            slopes = torch.autograd.grad(support(u, own), list(u.values()), create_graph=True)
            u = {name: value - 0.1 * slope for (name, value), slope in zip(u.items(), slopes, strict=True)}
        unrolled = torch.autograd.grad(query(u, own), list(leaves.values()))
        for name, expected in zip(leaves, unrolled, strict=True):
            torch.testing.assert_close(answer.per_task[name][task], expected, rtol=1e-10, atol=1e-13)


def test_maml_descends_by_eulers_steps_alone() -> None:
    with pytest.raises(ValueError, match=r"use Euler\(step\)"):
        maml(THETA, quadratic_support, quadratic_query, quadratic(2, 5, 10), length=1.0, solver=amaml.Dopri5())


def test_fomaml_is_the_query_gradient_at_the_end_of_the_flow() -> None:
    tasks = quadratic(3, 5, 10)
    u, _ = flow_of_quadratic(THETA, tasks, 0.7)
    answer = fomaml(THETA, quadratic_support, quadratic_query, tasks, length=0.7, solver=amaml.Dopri5(1e-10))
    assert apart(answer.per_task, 2 * (u - tasks["b"]) + 0.4 * u.pow(3)) < 1e-8
    assert (answer.stats.hvps == 0).all()


def test_fomaml_of_several_horizons_weighs_them() -> None:
    net, tasks = network([6]), cosines(2, 9)
    losses, solver = amaml.regression_losses(net), amaml.Euler(0.05)
    both = fomaml(start(net), *losses, tasks, horizons=[(0.5, 0.25), (1.0, 2.0)], solver=solver)
    parts = [fomaml(start(net), *losses, tasks, length=length, solver=solver) for length in (0.5, 1.0)]
    torch.testing.assert_close(flat(both.grad), 0.25 * flat(parts[0].grad) + 2.0 * flat(parts[1].grad))


def test_reptile_goes_towards_where_the_tasks_went() -> None:
    tasks = quadratic(3, 5, 10)
    u, _ = flow_of_quadratic(THETA, tasks, 0.7)
    answer = reptile(THETA, quadratic_support, quadratic_query, tasks, length=0.7, solver=amaml.Dopri5(1e-10))
    assert apart(answer.per_task, THETA - u) < 1e-8
    assert apart(answer.grad, (THETA - u).mean(dim=0)) < 1e-8


def test_imaml_is_exact_at_the_minimum_of_a_quadratic() -> None:
    tasks, rho = quadratic(3, 5, 10), 2.0
    answer = imaml(
        THETA,
        quadratic_support,
        quadratic_query,
        tasks,
        length=30.0,
        solver=amaml.Dopri5(1e-10),
        proximal=rho,
        cg_steps=5,
    )
    matrix = tasks["A"] + rho * torch.eye(5, dtype=torch.float64)
    minimum = torch.linalg.solve(matrix, (tasks["A"] @ tasks["a"].unsqueeze(-1)).squeeze(-1) + rho * THETA)
    gradient = 2 * (minimum - tasks["b"]) + 0.4 * minimum.pow(3)
    assert apart(answer.adapted, minimum) < 1e-8
    assert apart(answer.per_task, rho * torch.linalg.solve(matrix, gradient)) < 1e-8


def test_imaml_damps_the_system_as_asked() -> None:
    tasks = quadratic(2, 5, 10)
    heavy = imaml(THETA, quadratic_support, quadratic_query, tasks, length=1.0, proximal=1.0, damping=1e6, cg_steps=3)
    assert float(flat({"g": heavy.per_task}).norm()) < 1e-4


def test_imaml_needs_a_proximal_term() -> None:
    with pytest.raises(ValueError, match="proximal must be positive"):
        imaml(THETA, quadratic_support, quadratic_query, quadratic(2, 5, 10), length=1.0, proximal=0.0)
