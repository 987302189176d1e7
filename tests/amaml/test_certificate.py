"""The certificate of a meta-gradient: as large as the error where one is known, infinite with a sentence where none can be."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.func import functional_call

import amaml
from amaml.methods.certificate import Certificate, verdicts
from amaml.methods.parameters import Layout
from amaml.methods.problem import pose
from amaml.methods.tangent import Tangents, Undecided, along_flow, gradient_of
from benchmarks.stress_problems import step
from tests.amaml.problems import (
    Tensors,
    apart,
    cosines,
    flat,
    network,
    quadratic,
    quadratic_query,
    quadratic_support,
    start,
)  # fmt: skip

FLOAT64 = torch.float64
THETA = torch.linspace(-1, 1, 5, dtype=FLOAT64)


def judged(
    gradients: Tensor,
    params: Any,
    support: Any,
    query: Any,
    tasks: Any,
    *,
    rates: Tensor | None = None,
    spent: int = 0,
    **question: Any,
) -> Certificate:
    """The certificate of gradients [B, P] that are handed in as the answer to a question."""
    problem, layout = pose(params, support, query, tasks, **question)
    problem = replace(problem, rates=rates)
    evaluations = torch.full((len(gradients),), spent)
    return Certificate.of([*verdicts(problem, support, query, tasks, layout, gradients, evaluations)])


def certified(*arguments: Any, **question: Any) -> tuple[amaml.MetaGradient, Certificate]:
    answer = amaml.meta_gradient(*arguments, **question, certify=True)
    assert answer.certificate is not None
    return answer, answer.certificate


# Closed forms


def gradient_of_flow(
    theta: Tensor, tasks: Tensors, horizons: list[tuple[float, float]], proximal: float, in_query: bool, rates: Tensor
) -> Tensor:
    """dJ/dθ [B, P] of `quadratic_support` and `quadratic_query`, by matrix exponentials."""
    identity = torch.eye(len(theta), dtype=FLOAT64)
    curvature = tasks["A"] + proximal * identity
    pulled = torch.linalg.solve(curvature, proximal * identity)  # of the flow's resting place with respect to θ
    rest = torch.linalg.solve(curvature, (tasks["A"] @ tasks["a"][..., None])) + pulled @ theta[:, None]
    total = torch.zeros_like(tasks["a"])
    for time, weight in horizons:
        decay = torch.matrix_exp(-time * rates[:, None] * curvature)
        u = (rest + decay @ (theta[:, None] - rest))[..., 0]
        slope = 2 * (u - tasks["b"]) + 0.4 * u.pow(3)
        away = proximal * in_query * (u - theta)
        moves = pulled + decay @ (identity - pulled)
        total += weight * ((moves.mT @ (slope + away)[..., None])[..., 0] - away)
    return total


ONES = torch.ones(5, dtype=FLOAT64)
QUESTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "proximal": {"proximal": 0.7},
    "proximal in query": {"proximal": 0.7, "in_query": True},
    "rates": {"rates": torch.tensor([0.2, 2.0, 1.0, 0.0, 0.5], dtype=FLOAT64)},
    "horizons": {"horizons": [(0.3, 1.0), (0.5, -0.5), (1.4, 2.0)]},
    "all": {
        "proximal": 0.3,
        "in_query": True,
        "rates": torch.tensor([0.2, 2.0, 1.0, 0.0, 0.5], dtype=FLOAT64),
        "horizons": [(0.3, 1.0), (1.4, -2.0)],
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", QUESTIONS)
def test_the_closed_form_passes_and_a_hundredth_more_is_seen(name: str, dtype: torch.dtype) -> None:
    asked = {"horizons": [(1.4, 1.0)], "proximal": 0.0, "in_query": False, "rates": ONES} | QUESTIONS[name]
    tasks = quadratic(3, 5, 50)
    exact = gradient_of_flow(THETA, tasks, **asked)
    given = {key: value.to(dtype) for key, value in tasks.items()}
    question = {
        "rates": asked["rates"].to(dtype),
        "horizons": asked["horizons"],
        "proximal": asked["proximal"],
        "proximal_in_query": asked["in_query"],
        "solver": amaml.Dopri5(1e-6 if dtype is torch.float32 else 1e-9),
    }

    def error(gradients: Tensor) -> Tensor:
        return judged(gradients.to(dtype), THETA.to(dtype), quadratic_support, quadratic_query, given, **question).error

    # float32 changes the tasks themselves by 6e-8.
    assert (error(exact) < (3e-6 if dtype is torch.float32 else 1e-8)).all()
    assert ((error(1.01 * exact) - 0.01).abs() < 1e-4).all()


SOLVERS = [
    amaml.Euler(0.05),
    amaml.Heun(0.05),
    amaml.RK4(0.05),
    amaml.Dopri5(),
    amaml.Bosh3(1e-5),
    *(amaml.TorchDiffEq(method, step=0.05) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
    amaml.TorchDiffEq("explicit_adams", step=0.02),
    *(amaml.TorchDiffEq(method) for method in ("dopri8", "dopri5", "bosh3", "adaptive_heun", "fehlberg2")),
]


def solver_name(solver: Any) -> str:
    return f"torchdiffeq {solver.method}" if isinstance(solver, amaml.TorchDiffEq) else type(solver).__name__


def unrolled(theta: Tensor, support: Any, query: Any, task: Any, horizons: list[float], solver: Any) -> Tensor:
    """The gradient [P] of a discrete map, by autograd through its steps: loops of textbooks, or torchdiffeq."""
    u = origin = theta.detach().clone().requires_grad_()

    def field(u: Tensor) -> Tensor:
        return -torch.autograd.grad(support(u, task), u, create_graph=True)[0]

    total, before = torch.zeros((), dtype=FLOAT64), 0.0
    for time in horizons:
        count = max(1, round((time - before) / solver.step))
        if isinstance(solver, amaml.TorchDiffEq):
            grid = torch.linspace(before, time, count + 1, dtype=FLOAT64)
            u = torchdiffeq.odeint(lambda _, u: field(u), u, grid, method=solver.method)[-1]
        else:
            for _ in range(count):
                u = step(solver, field, u, (time - before) / count)
        total, before = total + query(u, task), time
    return torch.autograd.grad(total, origin)[0]


@pytest.mark.parametrize("solver", SOLVERS, ids=solver_name)
def test_every_solvers_error_is_that_of_the_certificate(solver: Any) -> None:
    tasks = quadratic(2, 5, 50)
    horizons = [0.4, 1.33]
    answer, certificate = certified(
        THETA, quadratic_support, quadratic_query, tasks, horizons=[(time, 1.0) for time in horizons], solver=solver
    )
    if answer.stats.target == "flow":
        exact = gradient_of_flow(THETA, tasks, [(time, 1.0) for time in horizons], 0.0, False, ONES)
        least = 10 * solver.rtol
    else:
        one = [{name: value[task] for name, value in tasks.items()} for task in range(2)]
        exact = torch.stack(
            [unrolled(THETA, quadratic_support, quadratic_query, task, horizons, solver) for task in one]
        )
        least = 1e-5 if getattr(solver, "method", "") == "explicit_adams" else 1e-8  # whose weights enlarge rounding
    for task, reason in enumerate(certificate.reasons):
        assert reason is None
        error, seen = apart(answer.per_task[task], exact[task]), float(certificate.error[task])
        assert error / 10 < seen < max(least, 3 * error)


def test_many_horizons_cost_little_more_than_one() -> None:
    tasks, horizons = quadratic(1, 5, 50), [(0.04 * k, 1.0) for k in range(1, 51)]
    exact = gradient_of_flow(THETA, tasks, horizons, 0.0, False, ONES)
    question: dict[str, Any] = {"horizons": horizons, "solver": amaml.Dopri5(1e-7)}
    certificate = judged(exact, THETA, quadratic_support, quadratic_query, tasks, **question)
    assert certificate.reasons == (None,)
    assert (certificate.error < 1e-6).all()


def test_a_steep_and_nearly_straight_loss_has_no_kinks() -> None:
    """What its gradient's rounding makes of a difference is no jump."""
    theta, task = torch.ones(2, dtype=FLOAT64), torch.zeros(1, 1, dtype=FLOAT64)
    gradient = torch.full((1, 2), (1 - 1e-9) ** 10, dtype=FLOAT64)
    certificate = judged(
        gradient, theta, lambda u, _: (3.3 * u + 5e-9 * u.square()).sum(), lambda u, _: u.sum(), task, length=1.0,
        solver=amaml.Euler(0.1),
    )  # fmt: skip
    assert certificate.reasons == (None,)
    assert (certificate.error < 1e-6).all()


def test_a_start_at_rest_and_a_flow_that_contracts_by_seventeen_orders() -> None:
    """u stays where it is; δ = e^{−At} v, whose smallest element is to be right relative to itself."""
    rates = torch.tensor([[40.0, 38.0, 39.0]], dtype=FLOAT64)
    theta = torch.zeros(3, dtype=FLOAT64)

    def error(gradient: Tensor) -> float:
        return float(
            judged(
                gradient, theta, lambda u, a: 0.5 * (a * u.square()).sum(), lambda u, _: u.sum(), rates, length=1.0
            ).error
        )

    assert error((-rates).exp()) < 1e-5
    assert error(1.001 * (-rates).exp()) == pytest.approx(1e-3, rel=0.05)


def test_the_tangent_along_the_flow_is_the_flow() -> None:
    """v = f(θ) gives δ(t) = f(u(t)) exactly, whatever the losses."""
    net, tasks = network([6, 5], seed=3), cosines(1, 20)
    layout = Layout(start(net))
    support = gradient_of(amaml.regression_losses(net)[0], {name: value[0] for name, value in tasks.items()}, layout)
    theta = flat(start(net)).numpy()
    ones = np.ones_like(theta)
    tangents = Tangents(support, theta, ones, 0.0, -support(theta[None]), np.ones(1))
    for u, delta in along_flow(tangents, [0.5, 3.0], 1e-9, 2000):
        slope = -support(u[None])[0]
        assert np.linalg.norm(delta - slope) < 1e-7 * np.linalg.norm(slope)


# Gradients that are wrong


def mlp_problem(seed: int = 0) -> tuple[amaml.MLP, Tensors, dict[str, Any]]:
    return network([7], seed=seed), cosines(2, 15, seed=seed), {"length": 1.0, "solver": amaml.Dopri5(1e-7)}


def without_its_largest(gradients: Tensor) -> Tensor:
    """One coordinate zeroed, the one that matters most."""
    wrong = gradients.clone()
    wrong[torch.arange(len(wrong)), wrong.abs().argmax(dim=1)] = 0
    return wrong


FALSIFIED: list[Callable[[Tensor], Tensor]] = [
    lambda right: 1.01 * right,
    without_its_largest,
    lambda right: right.flip(0),
    lambda right: 1e6 * right,
    torch.zeros_like,
    lambda right: -right,
]


@pytest.mark.parametrize(
    "falsify", FALSIFIED, ids=["scaled", "zeroed", "of another task", "huge", "nothing", "opposite"]
)
@pytest.mark.parametrize("solver", [amaml.Dopri5(1e-7), amaml.Euler(0.05)], ids=lambda s: type(s).__name__)
def test_a_falsified_gradient_is_seen(falsify: Callable[[Tensor], Tensor], solver: Any) -> None:
    for seed in range(2):
        net, tasks, _ = mlp_problem(seed)
        question = {"length": 1.0, "solver": solver}
        losses = amaml.regression_losses(net)
        right = flat(amaml.meta_gradient(start(net), *losses, tasks, **question).per_task, 1)
        wrong = falsify(right)
        seen = judged(wrong, start(net), *losses, tasks, **question).error
        error = (wrong - right).norm(dim=1) / right.norm(dim=1)
        assert ((seen > error / 4) & (seen < 4 * error)).all()


def test_the_gradients_of_another_network_and_of_another_loss_are_seen() -> None:
    net, tasks, question = mlp_problem()
    support, query = amaml.regression_losses(net)
    right = flat(amaml.meta_gradient(start(net), support, query, tasks, **question).per_task, 1)
    other = start(network([7], seed=1))
    wrong = [
        amaml.meta_gradient(other, support, query, tasks, **question),
        amaml.meta_gradient(start(net), lambda u, task: 0.5 * support(u, task), query, tasks, **question),
        amaml.meta_gradient(start(net), support, query, tasks, adjoint=amaml.Interpolated("euler"), **question),
    ]
    for answer in wrong:
        given = flat(answer.per_task, 1)
        seen = judged(given, start(net), support, query, tasks, **question).error
        error = (given - right).norm(dim=1) / right.norm(dim=1)
        assert ((seen > error / 4) & (seen < 4 * error)).all()


def test_long_steps_from_a_start_at_rest_are_seen() -> None:
    """Where u rests, nothing holds an adaptive solver's steps but λ, which moves: one step of RK4 over the whole length."""
    length, z = 1.0, -2.0
    right, wrong = math.exp(z), 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    certificate = judged(
        torch.full((1, 3), wrong, dtype=FLOAT64), torch.zeros(3, dtype=FLOAT64), lambda u, _: u.square().sum(),
        lambda u, c: (c * u).sum(), torch.ones(1, 3, dtype=FLOAT64), length=length,
    )  # fmt: skip
    assert float(certificate.error) == pytest.approx(abs(wrong / right - 1), rel=1e-4)


@pytest.mark.parametrize(("stiffness", "width"), [(10, 0.1), (30, 0.1), (30, 0.01)])
def test_a_mode_that_becomes_stiff_late_is_seen(stiffness: float, width: float) -> None:
    """s drifts past 1, where the curvature of z rises; z rests at its minimum, so that u's error test sees nothing. Wrong is what
    autograd through long steps gives, right is e^{−∫ curvature}."""
    others = torch.linspace(0.5, 3, 20, dtype=FLOAT64)

    def support(u: Tensor, _: Tensor) -> Tensor:
        curvature = 1 + stiffness * torch.sigmoid((u[0] - 1) / width)
        return -u[0] + 0.5 * curvature * u[1].square() + 0.5 * (others * u[2:].square()).sum()

    def query(u: Tensor, _: Tensor) -> Tensor:
        return u[1]

    theta, task = torch.zeros(22, dtype=FLOAT64), torch.zeros(1, 1, dtype=FLOAT64)
    drift = np.linspace(0, 1.3, 400_001)
    right = torch.zeros(1, 22, dtype=FLOAT64)
    right[0, 1] = math.exp(-np.trapezoid(1 + stiffness / (1 + np.exp(-(drift - 1) / width)), drift))
    wrong = unrolled(theta, support, query, task[0], [1.3], amaml.RK4(1.3 / 3))[None]
    assert float(judged(right, theta, support, query, task, length=1.3).error) < 1e-2
    assert float(judged(wrong, theta, support, query, task, length=1.3).error) > apart(wrong, right) / 3


def swapped_activation(net: amaml.MLP) -> None:
    net[1] = nn.ReLU()


def activation_after_the_output(net: amaml.MLP) -> None:
    net.append(nn.Tanh())


def scaled_inputs(net: amaml.MLP) -> None:
    net.register_forward_pre_hook(lambda _, inputs: (3 * inputs[0],))


@pytest.mark.parametrize("edit", [swapped_activation, activation_after_the_output, scaled_inputs])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64], ids=str)
def test_the_gradient_of_a_network_before_it_was_edited_is_seen(
    edit: Callable[[amaml.MLP], None], dtype: torch.dtype
) -> None:
    net, tasks = network([8, 8], dtype), cosines(2, 12, dtype)
    question: dict[str, Any] = {"length": 0.5, "solver": amaml.Euler(0.05)}
    before = flat(amaml.meta_gradient(start(net), *amaml.regression_losses(net), tasks, **question).per_task, 1)
    edit(net)
    layout = Layout(start(net))
    exact = network([8, 8], FLOAT64)
    edit(exact)

    def loss(rows: str) -> Callable[[Tensor, Tensors], Tensor]:
        def of(u: Tensor, task: Tensors) -> Tensor:
            predicted = functional_call(exact, layout.unflatten(u), (task[f"{rows}_x"].double(),))
            return 0.5 * (predicted - task[f"{rows}_y"].double()).square().mean()

        return of

    theta = flat(start(net))
    right = torch.stack(
        [
            unrolled(theta, loss("support"), loss("query"), {k: v[task] for k, v in tasks.items()}, [0.5], question["solver"])
            for task in range(2)
        ]
    )  # fmt: skip
    losses = amaml.regression_losses(net)
    assert (judged(right, start(net), *losses, tasks, **question).error < 1e-7).all()
    seen = judged(before, start(net), *losses, tasks, **question).error
    error = (before - right).norm(dim=1) / right.norm(dim=1)
    assert (error > 0.02).all()
    assert ((seen > error / 4) & (seen < 4 * error)).all()


# Kinks


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


# Where nothing is known


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
    with pytest.raises(Undecided, match="more than 40 evaluations of the flow, the budget, to come to t="):
        along_flow(tangents, [2.0], 1e-9, 40)


def test_no_gradient_where_there_is_none_is_right() -> None:
    zeros = torch.zeros(2, 5, dtype=FLOAT64)
    for solver in (amaml.Dopri5(), amaml.Euler(0.1)):
        certificate = judged(
            zeros, THETA, quadratic_support, lambda u, _: 0 * u.sum(), quadratic(2, 5, 5), length=1.0, solver=solver
        )
        assert certificate.error.tolist() == [0.0, 0.0]
        assert certificate.reasons == (None, None)


# How sharp it is


def test_on_well_posed_problems_it_is_within_ten_tolerances() -> None:
    for rtol in (1e-4, 1e-6, 1e-8):
        seen = []
        for seed in range(5):
            net, tasks = network([6], activation=("tanh", "softplus")[seed % 2], seed=seed), cosines(1, 12, seed=seed)
            losses = amaml.regression_losses(net)
            seen.append(certified(start(net), *losses, tasks, length=1.0, solver=amaml.Dopri5(rtol))[1].error)
        assert torch.cat(seen).median() <= 10 * rtol


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_it_knows_no_units(scale: float) -> None:
    """Losses, and with them time, or parameters in other units: the same certificate to a few digits."""
    tasks = quadratic(2, 5, 50)
    exact = gradient_of_flow(THETA, tasks, [(1.0, 1.0)], 0.0, False, ONES)
    plain = judged(1.001 * exact, THETA, quadratic_support, quadratic_query, tasks, length=1.0).error
    louder = judged(
        1.001 * scale * exact, THETA, lambda u, t: scale * quadratic_support(u, t),
        lambda u, t: scale * quadratic_query(u, t), tasks, length=1.0 / scale,
    ).error  # fmt: skip
    wider = judged(
        1.001 * exact / scale, scale * THETA, lambda u, t: scale**2 * quadratic_support(u / scale, t),
        lambda u, t: quadratic_query(u / scale, t), tasks, length=1.0,
    ).error  # fmt: skip
    torch.testing.assert_close(louder, plain, rtol=1e-2, atol=0)
    torch.testing.assert_close(wider, plain, rtol=1e-2, atol=0)


def test_it_is_the_same_twice_and_travels_by_pickle() -> None:
    net, tasks, question = mlp_problem()
    losses = amaml.regression_losses(net)
    first, again = (certified(start(net), *losses, tasks, **question)[1] for _ in range(2))
    carried = pickle.loads(pickle.dumps(first))  # noqa: S301
    for other in (again, carried):
        assert torch.equal(first.error, other.error)
        assert first.reasons == other.reasons


# Losses in float64


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


def test_it_is_of_the_losses_as_they_are_without_autocast() -> None:
    net, tasks, question = mlp_problem()
    losses = amaml.regression_losses(net)
    right = flat(amaml.meta_gradient(start(net), *losses, tasks, **question).per_task, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        certificate = judged(right, start(net), *losses, tasks, **question)
    assert (certificate.error < 1e-5).all()
