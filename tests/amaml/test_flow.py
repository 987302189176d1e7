"""The initial value problem against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

import amaml
from amaml.flow.snapshots import Snapshots
from amaml.flow.tableau import BOSH3, DOPRI5, EULER, HEUN, RK4, Tableau
from tests.amaml.problems import apart
from tests.amaml.quadratics import flow_of_quadratic, quadratic, quadratic_query, quadratic_support


def solved(
    solver: Any, length: float = 1.0, condition: float = 100.0, **options: Any
) -> tuple[amaml.MetaGradient, Tensor, Tensor]:
    tasks = quadratic(batch=4, size=5, condition=condition)
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    answer = amaml.meta_gradient(
        theta, quadratic_support, quadratic_query, tasks, length=length, solver=solver, **options
    )
    return answer, *flow_of_quadratic(theta, tasks, length)


@pytest.mark.parametrize("tableau", [EULER, HEUN, RK4, BOSH3, DOPRI5], ids=lambda tableau: tableau.name)
def test_tableau_meets_its_order_conditions(tableau: Tableau) -> None:
    c = torch.tensor(tableau.c, dtype=torch.float64)
    b = torch.tensor(tableau.b, dtype=torch.float64)
    for power in range(tableau.order):
        assert float(b @ c**power) == pytest.approx(1 / (power + 1), abs=1e-14)
    if tableau.error is not None:
        assert sum(tableau.error) == pytest.approx(0, abs=1e-14)
    if tableau.midpoint is not None:
        stages = torch.cat([c, torch.ones(1, dtype=torch.float64)])
        weights = torch.tensor(tableau.midpoint, dtype=torch.float64)
        for power in range(4):
            assert float(weights @ stages**power) == pytest.approx(0.5 ** (power + 1) / (power + 1), abs=1e-12)


@pytest.mark.parametrize("tableau", [EULER, HEUN, RK4, BOSH3, DOPRI5], ids=lambda tableau: tableau.name)
def test_stability_limit_is_where_the_map_leaves_the_unit_disc(tableau: Tableau) -> None:
    def growth(z: float) -> float:
        k: list[float] = []
        for row in tableau.a:
            k.append(-z * (1 + sum(weight * slope for weight, slope in zip(row, k, strict=True))))
        return abs(1 + sum(weight * slope for weight, slope in zip(tableau.b, k, strict=True)))

    assert growth(0.99 * tableau.stability_limit) < 1 < growth(1.02 * tableau.stability_limit)
    assert tableau.guard <= 0.7 * tableau.stability_limit


@pytest.mark.parametrize(
    ("solver", "order"), [(amaml.Euler, 1), (amaml.Heun, 2), (amaml.RK4, 4)], ids=["euler", "heun", "rk4"]
)
def test_fixed_steps_converge_with_their_order(solver: Any, order: int) -> None:
    errors = []
    for step in (0.02, 0.01):
        answer, u, gradient = solved(solver(step=step))
        errors.append((apart(answer.adapted, u), apart(answer.per_task, gradient)))
    for coarse, fine in zip(*errors, strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("condition", [10.0, 1e2, 1e6])
def test_dopri5_agrees_with_the_closed_form_for_every_task(condition: float) -> None:
    answer, u, gradient = solved(amaml.Dopri5(rtol=1e-9), length=2.0, condition=condition)
    for task in range(4):
        assert apart(answer.adapted[task], u[task]) < 1e-8
        assert apart(answer.per_task[task], gradient[task]) < 1e-6
    assert apart(answer.grad, gradient.mean(dim=0)) < 1e-6


def test_tolerance_decides_error_and_cost() -> None:
    loose, u, gradient = solved(amaml.Dopri5(rtol=1e-4, atol=1e-4), length=2.0)
    tight, _, _ = solved(amaml.Dopri5(rtol=1e-8, atol=1e-8), length=2.0)
    assert apart(tight.per_task, gradient) < 5e-2 * apart(loose.per_task, gradient)
    assert (tight.stats.gradients > 1.5 * loose.stats.gradients).all()
    assert apart(tight.adapted, u) < 1e-7


def test_steps_of_a_task_dont_depend_on_a_stiff_neighbour() -> None:
    tasks = quadratic(batch=2, size=5, condition=10.0)
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    alone = amaml.meta_gradient(
        theta, quadratic_support, quadratic_query, {name: value[:1] for name, value in tasks.items()}, length=1.0
    )
    tasks["A"][1] *= 30
    both = amaml.meta_gradient(theta, quadratic_support, quadratic_query, tasks, length=1.0)
    assert both.stats.steps[0] == alone.stats.steps[0]
    assert both.stats.steps[1] > 4 * both.stats.steps[0]
    assert both.stats.gradients[0] < both.stats.gradients[1] / 3
    torch.testing.assert_close(both.per_task[0], alone.per_task[0], rtol=1e-12, atol=1e-14)


def test_fixed_steps_are_those_of_the_rounded_number() -> None:
    answer, _, _ = solved(amaml.Euler(step=0.03), length=1.0)
    assert answer.stats.steps.tolist() == [33] * 4
    answer, _, _ = solved(amaml.Euler(step=0.1), length=0.01)
    assert answer.stats.steps.tolist() == [1] * 4


@pytest.mark.parametrize(
    "method", ["dopri8", "adaptive_heun", "fehlberg2", "midpoint", "heun2", "heun3", "implicit_adams"]
)
def test_torchdiffeq_by_name_solves_the_flow_that_torchdiffeq_solves(method: str) -> None:
    fixed = method not in ("dopri8", "adaptive_heun", "fehlberg2")
    tolerance = {"dopri8": 1e-7, "fehlberg2": 1e-6}.get(method, 1e-5)
    solver = amaml.TorchDiffEq(method, tolerance, tolerance, step=0.01 if fixed else None)
    answer, _, gradient = solved(solver)
    tasks = quadratic(batch=4, size=5, condition=100.0)
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(4, 5).clone().requires_grad_()

    def field(_: Tensor, v: Tensor) -> Tensor:
        return -(tasks["A"] @ (v - tasks["a"]).unsqueeze(-1)).squeeze(-1)

    options = {"step_size": 0.01} if fixed else {}
    end = torchdiffeq.odeint(field, theta, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=tolerance, atol=tolerance,
                             method=method, options=options)[-1]  # fmt: skip
    loss = (end - tasks["b"]).square().sum() + 0.1 * end.pow(4).sum()
    (expected,) = torch.autograd.grad(loss, theta)
    bound = 1e-9 if fixed else 1e-3
    assert apart(answer.adapted, end.detach()) < bound
    assert apart(answer.per_task, expected) < bound
    assert apart(answer.per_task, gradient) < 2e-3


def test_snapshots_grow_like_the_root_of_the_steps() -> None:
    state = torch.zeros(1)
    for steps in (10, 100, 1000, 10_000):
        snapshots = Snapshots()
        for number in range(steps):
            snapshots.offer(number, state)
        kept = sorted(snapshots.states)
        gaps = [b - a for a, b in zip(kept, [*kept[1:], steps], strict=True)]
        assert kept[0] == 0
        assert len(kept) + max(gaps) <= 3 * math.sqrt(steps) + 2


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 32])
def test_snapshots_keep_their_limit(limit: int) -> None:
    snapshots = Snapshots(limit=limit)
    for number in range(1000):
        snapshots.offer(number, torch.zeros(1))
        assert 1 <= len(snapshots.states) <= limit
