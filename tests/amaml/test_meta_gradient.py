"""`amaml.meta_gradient` as users call it: any loss, any pytree, clear refusals, failures that name the task and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import amaml
from amaml.flow.derivatives import TracedDerivatives
from amaml.flow.result import Result
from amaml.methods.parameters import Layout
from amaml.models.derivatives import derivatives_of
from amaml.models.mlp.derivatives import MLPDerivatives, _tanh
from tests.amaml.problems import Tensors, apart, cosines, flat, network, start
from tests.amaml.quadratics import quadratic, quadratic_query, quadratic_support


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "relu"])
@pytest.mark.parametrize("hidden", [[1], [7], [5, 3], [4, 4, 4, 4]], ids=str)
def test_written_out_derivatives_equal_the_traced_ones(activation: str, hidden: list[int]) -> None:
    net, tasks = network(hidden, activation=activation), cosines(3, 9)
    layout = Layout(start(net))
    losses = amaml.regression_losses(net)
    fast = derivatives_of(*losses, tasks, layout)
    slow = TracedDerivatives(*losses, tasks, layout.unflatten)
    assert isinstance(fast, MLPDerivatives)
    u = flat(start(net)) + 0.1 * torch.randn(3, sum(layout.sizes), dtype=torch.float64)
    v = torch.randn_like(u)
    torch.testing.assert_close(fast.gradient(u), slow.gradient(u), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fast.hvp(u, v), slow.hvp(u, v), rtol=1e-11, atol=1e-13)
    for written, traced in zip(fast.query(u), slow.query(u), strict=True):
        torch.testing.assert_close(written, traced, rtol=1e-12, atol=1e-14)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(fast.take(rows).gradient(u[rows]), slow.gradient(u)[rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_exact_for_any_argument(dtype: torch.dtype) -> None:
    sizes = torch.cat([torch.logspace(-30, 30, 4001, dtype=torch.float64), torch.linspace(0, 50, 4001).double()])
    z = torch.cat([sizes, -sizes, torch.tensor([torch.inf, -torch.inf]).double()]).to(dtype)
    found, expected = _tanh(z.clone(), torch.empty_like(z)).double(), torch.tanh(z.double())
    assert bool(((found - expected).abs() <= 4 * torch.finfo(dtype).eps * expected.abs()).all())
    assert _tanh(torch.tensor([torch.nan]), torch.empty(1)).isnan().item()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp's own
def test_forward_over_reverse_is_the_same_hvp() -> None:
    net, tasks = network([5]), cosines(2, 9)
    layout = Layout(start(net))
    traced = TracedDerivatives(*amaml.regression_losses(net), tasks, layout.unflatten)
    u, v = flat(start(net)), torch.linspace(-1, 1, sum(layout.sizes), dtype=torch.float64)
    task = {name: value[0] for name, value in tasks.items()}
    torch.testing.assert_close(traced._hvp_forward(u, v, task), traced._hvp_reverse(u, v, task), rtol=1e-12, atol=1e-14)


def test_a_convolutional_classifier_with_a_pytree_of_tasks() -> None:
    """More than 100,000 parameters, cross-entropy and nested tasks work like any other loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 400), nn.Tanh(), nn.Linear(400, 5))  # fmt: skip # noqa: E501
    params = {name: value.detach() for name, value in net.named_parameters()}
    assert sum(value.numel() for value in params.values()) > 100_000
    tasks = [{"x": torch.randn(2, 6, 1, 8, 8), "y": torch.randint(5, (2, 6))}, {"x": torch.randn(2, 6, 1, 8, 8), "y": torch.randint(5, (2, 6))}]  # fmt: skip # noqa: E501

    def loss(part: int) -> Any:
        def of(params: Tensors, task: Any) -> Tensor:
            return nn.functional.cross_entropy(functional_call(net, params, (task[part]["x"],)), task[part]["y"])

        return of

    answer = amaml.meta_gradient(params, loss(0), loss(1), tasks, length=0.5, solver=amaml.Euler(0.1))
    theta = {name: value.clone().requires_grad_() for name, value in params.items()}
    total = torch.zeros(())
    for index in range(2):
        task = [{key: value[index] for key, value in part.items()} for part in tasks]
        u = dict(theta)
        for _ in range(5):
            slopes = torch.autograd.grad(loss(0)(u, task), list(u.values()), create_graph=True)
            u = {name: value - 0.1 * slope for (name, value), slope in zip(u.items(), slopes, strict=True)}
        total = total + loss(1)(u, task) / 2
    expected = torch.autograd.grad(total, list(theta.values()))
    assert apart(flat(answer.grad), flat(dict(zip(theta, expected, strict=True)))) < 1e-5
    assert float(answer.loss.mean()) == pytest.approx(total.item(), rel=1e-5)


def test_answers_are_shaped_like_the_question() -> None:
    net, tasks = network([4], torch.float32), cosines(3, 9, torch.float32)
    answer = amaml.meta_gradient(dict(net.named_parameters()), *amaml.regression_losses(net), tasks, length=0.5)
    for name, value in net.named_parameters():
        assert answer.grad[name].shape == value.shape
        assert answer.per_task[name].shape == (3, *value.shape)
        assert answer.adapted[name].shape == (3, *value.shape)
        assert answer.grad[name].dtype == torch.float32
        assert not answer.grad[name].requires_grad
    assert answer.loss.shape == answer.length.shape == (3,)
    assert answer.proximal.shape == ()
    assert answer.stats.hvps.shape == (3,)
    flat_answer = amaml.meta_gradient(
        torch.ones(5), quadratic_support, quadratic_query, quadratic(2, 5, 10, torch.float32), length=0.5
    )
    assert flat_answer.grad.shape == (5,)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"length": -1.0}, "positive"),
    ({"length": float("nan")}, "positive"),
    ({"length": None}, "either length, or horizons"),
    ({"length": None, "horizons": []}, "positive"),
    ({"length": None, "horizons": [(2.0, 1.0), (1.0, 1.0)]}, "increase strictly"),
    ({"length": 1.0, "horizons": [(1.0, 1.0)]}, "either length, or horizons"),
    ({"length": 1.0, "proximal": -0.1}, "at least 0"),
    ({"length": 1.0, "rates": -torch.ones(5, dtype=torch.float64)}, "rates must be finite numbers of at least 0"),
    ({"length": 1.0, "rates": torch.full((5,), float("inf"), dtype=torch.float64)}, "got inf to inf"),
    ({"length": 1.0, "rates": torch.ones(4, dtype=torch.float64)}, "make them alike"),
    ({"length": 1.0, "solver": amaml.TorchDiffEq("dopri8"), "adjoint": amaml.Backsolve()}, "keeps its own graph"),
    ({"length": 1.0, "wrt": ["lenght"]}, "wrt names lenght: choose among length, rates, proximal"),
    ({"length": 1.0, "solver": amaml.Dopri5}, r"solver must be a solver such as amaml.Dopri5\(\)"),
    ({"length": 1.0, "adjoint": "discrete"}, r"adjoint must be an adjoint such as amaml.Discrete\(\)"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_invalid_arguments_are_refused(options: dict[str, Any], sentence: str) -> None:
    theta = torch.ones(5, dtype=torch.float64)
    with pytest.raises(ValueError, match=sentence):
        amaml.meta_gradient(theta, quadratic_support, quadratic_query, quadratic(2, 5, 10), **options)


def test_invalid_parameters_and_tasks_are_refused() -> None:
    tasks = quadratic(2, 5, 10)
    for params, sentence in (
        ({}, "empty"),
        (torch.ones(5, dtype=torch.int64), "float32 or float64"),
        (torch.ones(1, 5), "one axis"),
    ):
        with pytest.raises(ValueError, match=sentence):
            amaml.meta_gradient(params, quadratic_support, quadratic_query, tasks, length=1.0)
    uneven = {**tasks, "b": tasks["b"][:1]}
    with pytest.raises(ValueError, match="same first axis"):
        amaml.meta_gradient(torch.ones(5, dtype=torch.float64), quadratic_support, quadratic_query, uneven, length=1.0)
    for solver in (
        lambda: amaml.Euler(step=0.0),
        lambda: amaml.Dopri5(rtol=float("inf")),
        lambda: amaml.Discrete(checkpoints=0),
        lambda: amaml.TorchDiffEq("rk5"),
        lambda: amaml.TorchDiffEq("midpoint"),
        lambda: amaml.TorchDiffEq("dopri8", step=0.1),
    ):
        with pytest.raises(ValueError, match=r"must be|at least|choose one of|give it"):
            solver()
    with pytest.raises(TypeError, match="rates must be like params"):
        amaml.meta_gradient(
            torch.ones(5, dtype=torch.float64),
            quadratic_support,
            quadratic_query,
            tasks,
            length=1.0,
            rates=0.5,  # type: ignore[arg-type]
        )


def rows(**changes: Any) -> Tensors:
    given = {f"{of}_{axis}": torch.ones(2, 5, 1) for of in ("support", "query") for axis in "xy"}
    return {**given, **changes}


MISFITS: list[tuple[Tensors, str]] = [
    (rows(support_y=torch.ones(2, 5)), r"support_y has shape \[5\] a task, but the network gives \[5, 1\]"),
    (rows(support_y=torch.ones(2, 1, 1)), r"support_y has shape \[1, 1\] a task, but the network gives \[5, 1\]"),
    (rows(query_y=torch.ones(2, 5, 3)), r"query_y has shape \[5, 3\] a task"),
    (rows(support_x=torch.ones(2, 0, 1), support_y=torch.ones(2, 0, 1)), "at least one point"),
    (rows(query_x=torch.ones(2, 5, 1, dtype=torch.float64)), r"tasks\['query_x'\] is torch.float64 but params are"),
    (rows(support_x=torch.ones(2, 5, 1).numpy()), "tasks hold ndarray: give tensors alone"),
    ({"support_x": torch.ones(2, 5, 1), "support_y": torch.ones(2, 5, 1)}, "tasks lack query_x, query_y"),
]


@pytest.mark.parametrize(("tasks", "sentence"), MISFITS, ids=[sentence for _, sentence in MISFITS])
def test_rows_that_are_missing_or_would_be_broadcast_are_refused(tasks: Tensors, sentence: str) -> None:
    net = amaml.MLP(in_features=1, hidden=[4], out_features=1)
    with pytest.raises(ValueError, match=sentence):
        amaml.meta_gradient(dict(net.named_parameters()), *amaml.regression_losses(net), tasks, length=0.1)


def test_parameters_that_the_network_does_not_have_are_named() -> None:
    net = amaml.MLP(in_features=1, hidden=[4], out_features=1)
    with pytest.raises(ValueError, match="params name other, which the network doesn't have"):
        amaml.meta_gradient({"other": torch.ones(1)}, *amaml.regression_losses(net), rows(), length=0.1)
    with pytest.raises(ValueError, match="one flat tensor"):
        amaml.meta_gradient(torch.ones(3), *amaml.regression_losses(net), rows(), length=0.1)


def test_tied_weights_and_inputs_of_several_tensors_are_fine() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensors) -> Tensor:
            first: Tensor = self.b(torch.tanh(self.a(x["left"] + x["right"])))
            return first

    torch.manual_seed(0)
    net = Tied()
    inputs = {name: torch.randn(2, 5, 3) for name in ("left", "right")}
    tasks: Any = {
        "support_x": inputs,
        "query_x": inputs,
        "support_y": torch.ones(2, 5, 3),
        "query_y": torch.ones(2, 5, 3),
    }
    by_either_name = [
        amaml.meta_gradient({name: net.a.weight}, *amaml.regression_losses(net), tasks, length=0.1).grad[name]
        for name in ("a.weight", "b.weight")
    ]
    torch.testing.assert_close(*by_either_name)


def test_a_single_number_can_be_a_parameter() -> None:
    """½a(u−1)²: u(T) = 1 + e^(−aT)(θ−1), and dJ/dθ = e^(−aT) for J = u(T)."""
    tasks = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    answer = amaml.meta_gradient(
        {"u": torch.tensor(3.0, dtype=torch.float64)},
        lambda params, a: 0.5 * a[0] * (params["u"] - 1).square(),
        lambda params, _: params["u"],
        tasks,
        length=1.5,
        solver=amaml.Dopri5(1e-10),
    )
    assert answer.grad["u"].shape == ()
    torch.testing.assert_close(answer.per_task["u"], torch.exp(-1.5 * tasks[:, 0]), rtol=1e-8, atol=0)


def solve(tasks: Tensors, length: float, solver: Any) -> amaml.MetaGradient:
    theta = torch.ones(5, dtype=torch.float64)
    return amaml.meta_gradient(theta, quadratic_support, quadratic_query, tasks, length=length, solver=solver)


def failing(solver: Any, tasks: Tensors, length: float = 2.0) -> amaml.SolveError:
    with pytest.raises(amaml.SolveError) as caught:
        amaml.meta_gradient(
            torch.ones(5, dtype=torch.float64), quadratic_support, quadratic_query, tasks, length=length, solver=solver
        )
    return caught.value


@pytest.mark.parametrize("solver", [amaml.Euler, amaml.Heun, amaml.RK4])
def test_a_fixed_step_outside_the_stability_region_fails_with_a_step_that_works(solver: Any) -> None:
    tasks = quadratic(3, 5, 10)
    tasks["A"][1] *= 10  # λmax 100
    error = failing(solver(step=0.05), tasks)
    assert error.code is Result.STABILITY_LIMIT
    assert [failure.task for failure in error.failures] == [1]
    assert "use a step below" in str(error)
    good = error.failures[0].bound
    amaml.meta_gradient(
        torch.ones(5, dtype=torch.float64),
        quadratic_support,
        quadratic_query,
        tasks,
        length=1.0,
        solver=solver(step=good),
    )


@pytest.mark.parametrize("solver", [amaml.Euler(0.01), amaml.Dopri5(), amaml.Bosh3()], ids=lambda s: type(s).__name__)
def test_nan_in_a_tasks_data_is_named(solver: Any) -> None:
    tasks = quadratic(3, 5, 10)
    tasks["a"][2, 0] = float("nan")
    error = failing(solver, tasks)
    assert error.code is Result.NON_FINITE
    assert [failure.task for failure in error.failures] == [2]


def test_a_spent_budget_is_named() -> None:
    error = failing(amaml.Dopri5(max_steps=5), quadratic(3, 5, 10))
    assert error.code is Result.BUDGET_SPENT
    assert "5 steps" in str(error)


def test_the_certificate_detects_a_wrong_gradient() -> None:
    """Without the guard, Dormand–Prince returns a λ that has blown up, without an error; the certificate is large."""
    net, tasks = network([32, 32]), cosines(2, 50)
    answer = amaml.meta_gradient(
        start(net),
        *amaml.regression_losses(net),
        tasks,
        length=20.0,
        solver=amaml.Dopri5(1e-2, guard=False),
        adjoint=amaml.Discrete(),
        certify=True,
    )
    assert answer.certificate is not None
    assert (answer.certificate.error > 0.01).all()
    assert answer.certificate.error.max() > 0.1


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hidden=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    activation=st.sampled_from(["tanh", "sigmoid", "softplus"]),
    solver=st.sampled_from([amaml.Euler(0.05), amaml.Heun(0.1), amaml.Dopri5(1e-5), amaml.Bosh3(1e-4)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    length=st.floats(0.1, 2.0),
    stiffness=st.floats(0.1, 30.0),
    seed=st.integers(0, 1000),
)
def test_no_gradient_is_silently_wrong(
    hidden: list[int], activation: str, solver: Any, dtype: torch.dtype, length: float, stiffness: float, seed: int
) -> None:
    """For random problems, some of them much stiffer than the limits allow, there is either an answer within 10 × its certificate
    of an independent reference, or a failure that names the task and the reason."""
    net, tasks = network(hidden, dtype, activation, seed), cosines(2, 8, dtype, seed)
    scaled = {name: value * stiffness**0.5 for name, value in tasks.items()}
    losses = amaml.regression_losses(net)
    problem = {"length": length, "solver": solver, "certify": True}
    try:
        answer = amaml.meta_gradient(start(net), *losses, scaled, **problem)
    except amaml.SolveError as error:
        failure = error.failures[0]
    else:
        failure = None
    if failure is not None:
        assert failure.code in (Result.STABILITY_LIMIT, Result.NON_FINITE)
        assert isinstance(solver, amaml.Euler | amaml.Heun)
        return
    assert answer.certificate is not None
    exact = {name: value.double() for name, value in start(net).items()}
    finer = amaml.Dopri5(1e-9) if answer.stats.target == "flow" else solver
    doubled = {name: value.double() for name, value in scaled.items()}
    reference = amaml.meta_gradient(exact, *losses, doubled, length=length, solver=finer)
    for task in range(2):
        error = apart(flat(answer.per_task, 1)[task], flat(reference.per_task, 1)[task])
        assert error <= 10 * float(answer.certificate.error[task]) + 1e-12
