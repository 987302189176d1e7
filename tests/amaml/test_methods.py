"""The other estimators against closed forms and unrolled oracles."""

from __future__ import annotations

import pytest
import torch

import amaml
from amaml.methods.fomaml import fomaml
from amaml.methods.imaml import imaml
from amaml.methods.reptile import reptile
from tests.amaml.problems import (  # fmt: skip
    apart,
    cosines,
    flat,
    flow_of_quadratic,
    network,
    quadratic,
    quadratic_query,
    quadratic_support,
    start,
)

THETA = torch.linspace(-1, 1, 5, dtype=torch.float64)


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
