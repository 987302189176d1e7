"""The certificate of a meta-gradient that is wrong: as large as the error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import amaml
from amaml.methods.parameters import Layout
from tests.amaml.certificates import FLOAT64, judged, mlp_problem, unrolled
from tests.amaml.problems import Tensors, apart, cosines, flat, network, start


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
