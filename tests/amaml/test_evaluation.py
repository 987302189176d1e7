"""The paper's evaluation against loops over one task at a time, with torch's own optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from amaml.families.base import Tasks
from amaml.flow.result import SolveError
from amaml.flow.solvers import Dopri5, Euler
from amaml.flow.torchdiffeq_solver import TorchDiffEq
from amaml.models.mlp.module import MLP
from amaml.objectives import nrmse
from amaml.run import evaluation
from amaml.run.evaluation import (
    Curve,
    Evaluation,
    FineTuning,
    Flow,
    adapted_by_flow,
    evaluate,
    fine_tuned,
    fine_tuning_curve,
    mean_and_error,
    predictions,
)
from tests.amaml.problems import done


def problem(dtype: torch.dtype = torch.float64) -> tuple[MLP, dict[str, Tensor], Tasks]:
    torch.manual_seed(0)
    net = MLP(2, [5], 1).to(dtype)
    tasks = {
        "support_x": torch.randn(3, 6, 2), "support_y": torch.randn(3, 6, 1),
        "query_x": torch.randn(3, 9, 2), "query_y": torch.randn(3, 9, 1),
    }  # fmt: skip
    theta = {name: parameter.detach() for name, parameter in net.named_parameters()}
    return net, theta, {name: tensor.to(dtype) for name, tensor in tasks.items()}


def alone(net: MLP, theta: dict[str, Tensor]) -> MLP:
    own = MLP(net.widths[0], net.widths[1:-1], net.widths[-1], net.activation).double()
    own.load_state_dict(theta)
    return own


def loss(net: nn.Module, tasks: Tasks, task: int) -> Tensor:
    error: Tensor = net(tasks["support_x"][task]) - tasks["support_y"][task]
    return 0.5 * error.square().mean()


def test_fine_tuning_is_adam_on_each_task_alone() -> None:
    net, theta, tasks = problem()
    found = {e: {n: t.clone() for n, t in u.items()} for e, u in fine_tuned(net, theta, tasks, FineTuning(25, 0.01))}
    assert list(found) == [0, 10, 20, 25]
    for task in range(3):
        own = alone(net, theta)
        adam = torch.optim.Adam(own.parameters(), lr=0.01, weight_decay=1e-6)
        for epoch in range(1, 26):
            adam.zero_grad()
            loss(own, tasks, task).backward()  # type: ignore[no-untyped-call]
            adam.step()
            if epoch in found:
                for name, parameter in own.named_parameters():
                    torch.testing.assert_close(found[epoch][name][task], parameter.detach(), rtol=1e-9, atol=1e-11)


def test_fine_tuning_by_rates_is_adam_with_a_rate_for_each_tensor() -> None:
    net, theta, tasks = problem()
    factors = {name: 0.5 * number for number, name in enumerate(theta)}
    rates = {name: torch.full_like(theta[name], factor) for name, factor in factors.items()}
    *_, (epoch, found) = fine_tuned(net, theta, tasks, FineTuning(15, 0.01, rates))
    assert epoch == 15
    for task in range(3):
        own = alone(net, theta)
        groups = [{"params": [parameter], "lr": 0.01 * factors[name]} for name, parameter in own.named_parameters()]
        adam = torch.optim.Adam(groups, weight_decay=1e-6)
        for _ in range(15):
            adam.zero_grad()
            loss(own, tasks, task).backward()  # type: ignore[no-untyped-call]
            adam.step()
        for name, parameter in own.named_parameters():
            torch.testing.assert_close(found[name][task], parameter.detach(), rtol=1e-9, atol=1e-11)


def test_the_flow_by_euler_is_gradient_descent_on_each_task() -> None:
    net, theta, tasks = problem()
    found = adapted_by_flow(net, theta, tasks, Flow(0.5, Euler(step=0.1)))
    for task in range(3):
        own = alone(net, theta)
        for _ in range(5):
            own.zero_grad()
            loss(own, tasks, task).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in own.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=0.1)
        for name, parameter in own.named_parameters():
            torch.testing.assert_close(found[name][task], parameter.detach(), rtol=1e-10, atol=1e-12)


def test_a_strong_proximal_term_holds_theta() -> None:
    net, theta, tasks = problem()
    free, held = (adapted_by_flow(net, theta, tasks, Flow(1.0, Dopri5(), proximal=rho)) for rho in (0.0, 50.0))
    away = [max(float((found[name] - theta[name]).abs().max()) for name in theta) for found in (free, held)]
    assert away[1] < away[0] / 10


def test_torchdiffeq_agrees_with_our_solver() -> None:
    net, theta, tasks = problem()
    ours = adapted_by_flow(net, theta, tasks, Flow(1.0, Dopri5(rtol=1e-9, atol=1e-9)))
    theirs = adapted_by_flow(net, theta, tasks, Flow(1.0, TorchDiffEq("dopri8", rtol=1e-9, atol=1e-9)))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
        assert not theirs[name].requires_grad


def test_a_flow_that_cannot_be_solved_says_so() -> None:
    net, theta, tasks = problem()
    tasks["support_x"] *= 100
    with pytest.raises(SolveError, match="step below"):
        adapted_by_flow(net, theta, tasks, Flow(3.0, Euler(step=1.0)))


def test_nrmse_in_closed_form() -> None:
    target = torch.zeros(2, 4, 1)
    predicted = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 6.0]])[..., None]
    assert nrmse(predicted, target).tolist() == [1.0, 3.0]


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(mean_and_error(torch.ones(1))[1])


def test_predictions_are_each_tasks_own_network() -> None:
    net, theta, tasks = problem()
    own = {name: torch.stack([tensor * (task + 1) for task in range(3)]) for name, tensor in theta.items()}
    found = predictions(net, own, tasks["query_x"])
    for task in range(3):
        expected = alone(net, {name: tensor * (task + 1) for name, tensor in theta.items()})(tasks["query_x"][task])
        torch.testing.assert_close(found[task], expected.detach())


def test_the_curve_and_its_best_epoch() -> None:
    curve = Curve([0, 10, 20], torch.tensor([[3.0, 1.0], [1.0, 2.0], [4.0, 4.0]]))
    assert curve.best_epoch == 10
    assert curve.best.tolist() == [1.0, 2.0]
    assert curve.last.tolist() == [4.0, 4.0]


def test_evaluation_starts_at_theta_and_yields_in_between() -> None:
    net, theta, tasks = problem()
    found, times = done(evaluate(net, theta, tasks, Flow(0.5, Euler(step=0.1)), FineTuning(30, 0.01)))
    assert isinstance(found, Evaluation)
    assert times == 1 + 4
    assert found.curve.epochs == [0, 10, 20, 30]
    start = nrmse(
        predictions(net, {n: t.expand(3, *t.shape) for n, t in theta.items()}, tasks["query_x"]), tasks["query_y"]
    )
    torch.testing.assert_close(found.curve.scores[0], start)
    flown = adapted_by_flow(net, theta, tasks, Flow(0.5, Euler(step=0.1)))
    torch.testing.assert_close(found.flow, nrmse(predictions(net, flown, tasks["query_x"]), tasks["query_y"]))


def test_blocks_of_tasks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net, theta, tasks = problem()
    whole, _ = done(fine_tuning_curve(net, theta, tasks, FineTuning(20, 0.01)))
    monkeypatch.setattr(evaluation, "BLOCK", 2 * sum(tensor.numel() for tensor in theta.values()))
    cut, times = done(fine_tuning_curve(net, theta, tasks, FineTuning(20, 0.01)))
    assert times == 2 * 3
    assert cut.epochs == whole.epochs
    torch.testing.assert_close(cut.scores, whole.scores, rtol=1e-10, atol=1e-12)


def test_single_precision_in_double_precision_out() -> None:
    net, theta, tasks = problem(torch.float32)
    curve, _ = done(fine_tuning_curve(net, theta, tasks, FineTuning(1, 0.01)))
    assert curve.scores.dtype == torch.float64
    assert curve.epochs == [0, 1]
