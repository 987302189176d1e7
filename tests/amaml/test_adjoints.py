"""The adjoints against backpropagation, torchdiffeq, finite differences and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor
from torch.func import functional_call

import amaml
from amaml.adjoint import checkpointing
from amaml.adjoint.checkpointing import states_backwards
from amaml.flow.result import Result
from amaml.methods.parameters import Layout
from tests.amaml.problems import Tensors, apart, cosines, flat, network, start
from tests.amaml.quadratics import flow_of_quadratic, quadratic, quadratic_query, quadratic_support


def unrolled(net: torch.nn.Module, tasks: Tensors, steps: int, rate: float) -> Tensor:
    """MAML's gradient for each task by backpropagation through SGD: the independent oracle."""
    rows = []
    for task in range(len(tasks["support_x"])):
        theta = {name: value.requires_grad_() for name, value in start(net).items()}
        u = dict(theta)
        for _ in range(steps):
            loss = (
                0.5 * (functional_call(net, u, (tasks["support_x"][task],)) - tasks["support_y"][task]).square().mean()
            )
            slopes = torch.autograd.grad(loss, list(u.values()), create_graph=True)
            u = {name: value - rate * slope for (name, value), slope in zip(u.items(), slopes, strict=True)}
        loss = 0.5 * (functional_call(net, u, (tasks["query_x"][task],)) - tasks["query_y"][task]).square().mean()
        rows.append(torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(theta.values()))]))
    return torch.stack(rows).double()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "relu"])
def test_discrete_euler_is_backpropagation_through_sgd(dtype: torch.dtype, bound: float, activation: str) -> None:
    net, tasks = network([8, 8], dtype, activation), cosines(3, 10, dtype)
    answer = amaml.meta_gradient(
        start(net), *amaml.regression_losses(net), tasks, length=1.0, solver=amaml.Euler(step=0.02)
    )
    assert answer.stats.target == "discrete"
    assert apart(flat(answer.per_task, lead=1), unrolled(net, tasks, 50, 0.02)) < bound


@pytest.mark.parametrize(
    "solver", [amaml.Euler(0.02), amaml.RK4(0.05), amaml.Dopri5(1e-6, 1e-6)], ids=lambda s: type(s).__name__
)
def test_checkpoints_change_memory_and_not_the_gradient(solver: Any) -> None:
    net, tasks = network([8]), cosines(3, 20)
    losses = amaml.regression_losses(net)
    whole = amaml.meta_gradient(start(net), *losses, tasks, length=1.0, solver=solver, adjoint=amaml.Discrete())
    for checkpoints in (1, 2, 3, 5, 100):
        part = amaml.meta_gradient(
            start(net), *losses, tasks, length=1.0, solver=solver, adjoint=amaml.Discrete(checkpoints=checkpoints)
        )
        assert apart(flat(part.grad), flat(whole.grad)) < 1e-13


@pytest.mark.parametrize(
    ("solver", "adjoint"), [(amaml.Euler(0.02), None), (amaml.RK4(0.05), None), (amaml.Dopri5(1e-6), None),
                            (amaml.Dopri5(1e-6), amaml.Discrete())], ids=repr
)  # fmt: skip
def test_states_that_are_not_kept_are_recomputed_with_the_same_bits(
    solver: Any, adjoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tasks = network([8]), cosines(3, 20)
    problem: dict[str, Any] = {
        "horizons": [(0.5, 1.0), (2.0, 1.0)], "solver": solver, "adjoint": adjoint,
    }  # fmt: skip
    losses = [
        lambda params, task, own=loss: own(params, task) for loss in amaml.regression_losses(net)
    ]  # not the kernel's
    answers = []
    for cheap in (checkpointing.CHEAP_BYTES, 0):
        monkeypatch.setattr(checkpointing, "CHEAP_BYTES", cheap)
        answers.append(amaml.meta_gradient(start(net), *losses, tasks, **problem))
    kept, thinned = answers
    assert torch.equal(flat(kept.grad), flat(thinned.grad))
    assert bool((kept.stats.gradients <= thinned.stats.gradients).all())
    if solver == amaml.Euler(0.02):
        assert torch.equal(kept.stats.gradients, kept.stats.steps)
        assert bool((thinned.stats.gradients > 1.5 * thinned.stats.steps).all())


@pytest.mark.parametrize(("length", "slots"), [(1, 0), (2, 0), (9, 1), (30, 3), (64, 2), (100, 40)])
def test_states_backwards_gives_every_state_and_keeps_few(length: int, slots: int) -> None:
    alive: set[int] = set()

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def fresh(value: int) -> Tensor:
        tensor = torch.tensor(value).as_subclass(Counted)
        alive.add(id(tensor))
        return tensor

    most, calls, seen = 0, 0, []

    def advance(number: int, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert int(state) == number
        return fresh(number + 1)

    origin = fresh(0)
    for number, state in states_backwards(0, length, origin, slots, advance):
        assert int(state) == number
        seen.append(number)
        most = max(most, len(alive))
    assert seen == list(reversed(range(length)))
    assert most <= slots + 2  # the first, those in slots, the current
    if slots == 0:
        assert calls == length * (length - 1) // 2
    if slots >= length:
        assert calls == length - 1


@pytest.mark.parametrize("scheme", ["adaptive", "heun", "euler"])
def test_interpolated_converges_to_the_flows_gradient(scheme: Any) -> None:
    tasks = quadratic(batch=3, size=4, condition=10.0)
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64)
    _, expected = flow_of_quadratic(theta, tasks, 1.0)
    errors = []
    for step in (0.02, 0.01):
        solver = amaml.Dopri5(step**3, step**3) if scheme == "adaptive" else amaml.Heun(step)
        answer = amaml.meta_gradient(
            theta,
            quadratic_support,
            quadratic_query,
            tasks,
            length=1.0,
            solver=solver,
            adjoint=amaml.Interpolated(scheme),
        )
        assert answer.stats.target == "flow"
        errors.append(apart(answer.per_task, expected))
    order = {"adaptive": 2.0, "heun": 1.8, "euler": 0.8}[scheme]
    assert errors[1] < errors[0] / 2**order


def test_interpolated_agrees_with_torchdiffeq() -> None:
    net, tasks = network([8, 8]), cosines(2, 10)
    answer = amaml.meta_gradient(
        start(net), *amaml.regression_losses(net), tasks, length=1.0, solver=amaml.Dopri5(1e-9, 1e-9),
        adjoint=amaml.Interpolated(),
    )  # fmt: skip
    layout = Layout(start(net))

    def loss(u: Tensor, task: int, rows: str) -> Tensor:
        predicted = functional_call(net, layout.unflatten(u), (tasks[f"{rows}_x"][task],))
        return 0.5 * (predicted - tasks[f"{rows}_y"][task]).square().mean()

    expected = []
    for task in range(2):
        theta = flat(start(net)).requires_grad_()

        def field(_: Tensor, u: Tensor, task: int = task) -> Tensor:
            return -torch.autograd.grad(loss(u, task, "support"), u, create_graph=True)[0]

        times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        end = torchdiffeq.odeint(field, theta, times, rtol=1e-10, atol=1e-10, method="dopri5")[-1]
        expected.append(torch.autograd.grad(loss(end, task, "query"), theta)[0])
    assert apart(flat(answer.per_task, lead=1), torch.stack(expected)) < 1e-6


def test_backsolve_is_right_where_the_flow_can_be_reversed() -> None:
    tasks = quadratic(batch=3, size=4, condition=10.0)
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64)
    answer = amaml.meta_gradient(
        theta,
        quadratic_support,
        quadratic_query,
        tasks,
        length=0.5,
        solver=amaml.Dopri5(1e-9, 1e-9),
        adjoint=amaml.Backsolve(),
    )
    assert apart(answer.per_task, flow_of_quadratic(theta, tasks, 0.5)[1]) < 1e-6


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("length", [0.3, 1.0, 2.0, 2.5, 3.0])
def test_backsolve_is_right_to_some_percent_or_fails(length: float, tolerance: float) -> None:
    net = network([16, 16])
    params = start(net)
    params = {name: 1.5 * value for name, value in params.items()}
    tasks, losses = cosines(2, 20), amaml.regression_losses(net)
    exact = flat(amaml.meta_gradient(params, *losses, tasks, length=length, solver=amaml.Dopri5(1e-9)).per_task, lead=1)
    try:
        answer = amaml.meta_gradient(
            params, *losses, tasks, length=length, solver=amaml.Dopri5(tolerance), adjoint=amaml.Backsolve(2_000)
        )
    except amaml.SolveError:
        return
    assert apart(flat(answer.per_task, lead=1), exact) < 0.05


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e6])
def test_a_small_query_loss_is_solved_as_exactly_as_a_large_one(scale: float, guard: bool) -> None:
    net = network([8])
    params = start(net)
    support, query = amaml.regression_losses(net)
    tasks = cosines(2, 10)

    def solve(solver: Any, adjoint: Any) -> Tensor:
        return flat(
            amaml.meta_gradient(
                params,
                support,
                lambda p, task: scale * query(p, task),
                tasks,
                length=1.0,
                solver=solver,
                adjoint=adjoint,
            ).per_task,
            lead=1,
        )

    exact = solve(amaml.Dopri5(1e-9), amaml.Discrete())
    got = solve(amaml.Dopri5(1e-6, guard=guard), amaml.Interpolated())
    assert apart(got, exact) < 1e-4


@pytest.mark.parametrize("length", [3.0, 6.0])
def test_backsolve_fails_where_the_flow_can_not_be_reversed(length: float) -> None:
    tasks = quadratic(batch=3, size=4, condition=10.0)
    theta = torch.linspace(-1, 1, 4, dtype=torch.float64)
    with pytest.raises(amaml.SolveError, match=r"adjoint|budget") as caught:
        amaml.meta_gradient(
            theta, quadratic_support, quadratic_query, tasks, length=length, solver=amaml.Dopri5(1e-6, 1e-6),
            adjoint=amaml.Backsolve(max_evaluations=3000),
        )  # fmt: skip
    assert caught.value.code in (Result.DRIFTED, Result.BUDGET_SPENT, Result.STEP_UNDERFLOW, Result.NON_FINITE)


SOLVERS = [
    amaml.Euler(0.02), amaml.Heun(0.02), amaml.RK4(0.05), amaml.Dopri5(1e-10, 1e-10), amaml.Bosh3(1e-7, 1e-7),
    amaml.TorchDiffEq("midpoint", step=0.02), amaml.TorchDiffEq("heun3", step=0.02),
]  # fmt: skip


@pytest.mark.parametrize("horizons", [None, [(0.2, 0.5), (0.5, 2.0)]], ids=["length", "horizons"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: getattr(s, "method", type(s).__name__))
def test_every_derivative_against_finite_differences(solver: Any, horizons: Any) -> None:
    net, tasks = network([6]), cosines(2, 15)
    losses, theta = amaml.regression_losses(net), start(net)
    torch.manual_seed(1)
    rates = {name: 0.5 + torch.rand_like(value) for name, value in theta.items()}
    direction = {name: torch.randn_like(value) for name, value in theta.items()}

    def solve(
        theta: Tensors = theta, rates: Tensors = rates, proximal: float = 0.3, later: float = 0.0
    ) -> amaml.MetaGradient:
        span = {"length": 0.5 + later} if horizons is None else {"horizons": [(0.2 + later, 0.5), (0.5, 2.0)]}
        return amaml.meta_gradient(
            theta, *losses, tasks, solver=solver, rates=rates, proximal=proximal, proximal_in_query=True, **span
        )

    def along(point: Tensors, size: float) -> Tensors:
        return {name: value + size * direction[name] for name, value in point.items()}

    def difference(up: amaml.MetaGradient, down: amaml.MetaGradient, size: float = 1e-5) -> float:
        return float((up.loss.mean() - down.loss.mean()) / (2 * size))

    answer, e = solve(), 1e-5
    length = answer.length if horizons is None else answer.length[:, 0]
    pairs = {
        "theta": (flat(answer.grad) @ flat(direction), difference(solve(along(theta, e)), solve(along(theta, -e)))),
        "rates": (
            flat(answer.rates) @ flat(direction),
            difference(solve(rates=along(rates, e)), solve(rates=along(rates, -e))),
        ),
        "proximal": (answer.proximal, difference(solve(proximal=0.3 + e), solve(proximal=0.3 - e))),
        "length": (length.mean(), difference(solve(later=e), solve(later=-e))),
    }
    bound = 5e-3 if isinstance(solver, amaml.Bosh3) else 1e-5
    for name, (derivative, by_difference) in pairs.items():
        assert float(derivative) == pytest.approx(by_difference, rel=bound), name


@pytest.mark.parametrize("adjoint", [amaml.Interpolated(), amaml.Backsolve()], ids=lambda a: type(a).__name__)
def test_the_other_adjoints_give_the_same_derivatives(adjoint: Any) -> None:
    net, tasks = network([6]), cosines(2, 15)
    rates = {name: torch.full_like(value, 0.7) for name, value in start(net).items()}
    answers = [
        amaml.meta_gradient(
            start(net), *amaml.regression_losses(net), tasks, horizons=[(0.2, 0.5), (0.5, 2.0)], rates=rates, proximal=0.3,
            proximal_in_query=True, solver=amaml.Dopri5(1e-9, 1e-9), adjoint=each, wrt=("rates", "proximal"),
        )
        for each in (amaml.Discrete(), adjoint)
    ]  # fmt: skip
    exact, other = answers
    assert apart(flat(other.grad), flat(exact.grad)) < 1e-5
    assert apart(flat(other.rates), flat(exact.rates)) < 1e-5
    assert float(other.proximal) == pytest.approx(float(exact.proximal), rel=1e-5)
    torch.testing.assert_close(other.length, exact.length, rtol=1e-5, atol=1e-9)
