"""The certificate of a meta-gradient: as large as the error, which closed forms and unrolled steps tell, and how sharp it is."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import amaml
from amaml.methods.parameters import Layout
from amaml.methods.tangent import Tangents, along_flow, gradient_of
from tests.amaml.certificates import FLOAT64, ONES, THETA, certified, gradient_of_flow, judged, mlp_problem, unrolled
from tests.amaml.problems import apart, cosines, flat, network, start
from tests.amaml.quadratics import quadratic, quadratic_query, quadratic_support

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


def test_it_is_of_the_losses_as_they_are_without_autocast() -> None:
    net, tasks, question = mlp_problem()
    losses = amaml.regression_losses(net)
    right = flat(amaml.meta_gradient(start(net), *losses, tasks, **question).per_task, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        certificate = judged(right, start(net), *losses, tasks, **question)
    assert (certificate.error < 1e-5).all()
