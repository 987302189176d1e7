"""Losses of users' own: any differentiable loss gets its gradient, any other an error that says what is wrong with it."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, one_hot

import amaml
from amaml.flow.result import Result
from amaml.methods.fomaml.gradient import fomaml
from amaml.methods.reptile.gradient import reptile
from tests.amaml.classifier import LOSS, by_branch, classes, entropy, logits, solved
from tests.amaml.problems import Tensors, flat, unrolled


def by_one_hot(params: Tensors, task: Tensors) -> Tensor:
    return (logits(params, task) - one_hot(task["c"], 3)).square().mean()


def stops_at_nan(params: Tensors, task: Tensors) -> Tensor:
    loss = entropy(params, task)
    if torch.isnan(loss):
        raise AssertionError("NaN")
    return loss


def by_boolean_index(params: Tensors, task: Tensors) -> Tensor:
    return logits(params, task)[task["x"][:, 0] > 0].square().mean()


def filled_in(params: Tensors, task: Tensors) -> Tensor:
    parts = torch.zeros(3, dtype=torch.float64)
    for index in range(3):
        parts[index] = logits(params, task)[:, index].square().mean()
    return parts.sum()


def in_place_on_its_own(params: Tensors, task: Tensors) -> Tensor:
    return logits(params, task).mul_(2.0).square().mean()


def of_one_entry(params: Tensors, task: Tensors) -> Tensor:
    return entropy(params, task).reshape(1)


def in_float32(params: Tensors, task: Tensors) -> Tensor:
    return entropy(params, task).float()


def of_one_parameter(params: Tensors, task: Tensors) -> Tensor:
    return (task["x"] @ params["w"]).square().mean()


def of_no_parameter(params: Tensors, task: Tensors) -> Tensor:
    return task["x"].sum()


def partly_detached(params: Tensors, task: Tensors) -> Tensor:
    return entropy(params, task) * (1 + entropy(params, task).detach())


def through_complex_numbers(params: Tensors, task: Tensors) -> Tensor:
    return torch.fft.rfft(logits(params, task)[:, 0]).abs().square().mean()


def of_seeded_noise(params: Tensors, task: Tensors) -> Tensor:
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((task["x"] + noise) @ params["w"]).square().mean()


def by_item(params: Tensors, task: Tensors) -> Tensor:
    return entropy(params, task) / max(1.0, task["x"].abs().max().item())


WORKING = [
    by_one_hot, by_branch, stops_at_nan, by_boolean_index, filled_in, in_place_on_its_own, of_one_entry, in_float32,
    of_one_parameter, of_no_parameter, partly_detached, through_complex_numbers, of_seeded_noise, by_item,
]  # fmt: skip


@pytest.mark.parametrize("loss", WORKING, ids=lambda loss: loss.__name__)
def test_losses_get_the_gradient_of_the_unrolled_steps(loss: LOSS) -> None:
    params, tasks = classes()
    found = flat(solved(loss, entropy).grad)
    steps = 0 if loss is of_no_parameter else 4  # which autograd alone can't differentiate: nothing moves
    expected = flat(unrolled(params, loss, entropy, tasks, steps, 0.1))
    torch.testing.assert_close(found, expected, rtol=1e-6 if loss is in_float32 else 1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", [amaml.Euler(0.05), amaml.Dopri5(1e-8), amaml.TorchDiffEq("rk4", step=0.1)], ids=str)
def test_one_task_after_another_is_the_same_solve(solver: Any, caplog: pytest.LogCaptureFixture) -> None:
    def untraceable(params: Tensors, task: Tensors) -> Tensor:
        assert task["x"].sum().item() != 0
        return entropy(params, task)

    wanted = ["length", "rates", "proximal"]
    options = {"solver": solver, "proximal": 0.2, "wrt": wanted}
    traced = solved(entropy, **options)
    with caplog.at_level(logging.INFO, "amaml"):
        looped = solved(untraceable, **options)
    assert any("one at a time" in record.message for record in caplog.records)
    torch.testing.assert_close(flat(looped.per_task, 1), flat(traced.per_task, 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(looped.length, traced.length, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(looped.rates), flat(traced.rates), rtol=1e-9, atol=1e-12)


def test_sparse_tasks_work() -> None:
    params = {"w": classes()[0]["w"]}
    dense = torch.stack([torch.eye(4, dtype=torch.float64), 2 * torch.eye(4, dtype=torch.float64)])

    def loss(params: Tensors, x: Tensor) -> Tensor:
        return (x @ params["w"]).square().mean()

    answers = [
        amaml.meta_gradient(params, loss, loss, tasks, length=0.4, solver=amaml.Euler(0.1)).grad["w"]
        for tasks in (dense, dense.to_sparse())
    ]
    torch.testing.assert_close(*answers)


def inputs_in_place(params: Tensors, task: Tensors) -> Tensor:
    task["x"].mul_(1.1)
    return entropy(params, task)


def params_in_place(params: Tensors, task: Tensors) -> Tensor:
    params["w"].mul_(1.1)
    return entropy(params, task)


def through_numpy(params: Tensors, task: Tensors) -> Tensor:
    return torch.from_numpy(np.square(logits(params, task).detach().numpy())).mean()


def error_rate(params: Tensors, task: Tensors) -> Tensor:
    return (logits(params, task).argmax(dim=-1) != task["c"]).double().mean()


calls = itertools.count()
random = np.random.default_rng(0)

REFUSED: list[tuple[Any, str]] = [
    (lambda p, t: (entropy(p, t), {}), "support loss returned a tuple: return the scalar tensor alone"),
    (lambda *_: 3.0, "support loss returned a float"),
    (lambda *_: None, "support loss returned a NoneType"),
    (lambda _, t: (t["c"] == 0).sum(), r"support loss is torch.int64, and a gradient needs a real number"),
    (lambda p, t: logits(p, t).sum() * 1j, r"support loss is torch.complex128"),
    (
        lambda p, t: cross_entropy(logits(p, t), t["c"], reduction="none"),
        r"shape \[10\] for one task: return one number",
    ),
    (lambda p, t: torch.tensor(entropy(p, t).item()), "its gradient is zero everywhere"),
    (lambda p, t: entropy({name: value.detach() for name, value in p.items()}, t), "its gradient is zero everywhere"),
    (through_numpy, "its gradient is zero everywhere"),
    (error_rate, "its gradient is zero everywhere"),
    (inputs_in_place, "changes its arguments in place"),
    (params_in_place, "modified inplace"),
    (
        lambda p, t: torch.cdist(logits(p, t), t["x"][:, :3]).mean(),
        "derivative for '_cdist_backward' is not implemented",
    ),
    (lambda p, t: (t["x"] @ p["w"].float()).mean(), "same dtype"),
    (lambda p, t: entropy(p, {**t, "x": t["x"] + random.standard_normal()}), "isn't a pure function"),
    (lambda p, t: entropy(p, t) * (1 + 0.01 * next(calls)), "isn't a pure function"),
    (lambda p, t: entropy(p, t) * (1 + time.perf_counter() % 1), "isn't a pure function"),
    (
        lambda p, t: dropout(logits(p, t), 0.5).square().mean(),
        r"isn't a pure function: .*call net.eval\(\) for dropout",
    ),
]


@pytest.mark.parametrize(("loss", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_losses_without_a_gradient_are_refused(loss: LOSS, sentence: str) -> None:
    _, tasks = classes()
    before = {name: value.clone() for name, value in tasks.items()}
    with pytest.raises(ValueError, match=sentence):
        amaml.meta_gradient(classes()[0], loss, entropy, tasks, length=0.4, solver=amaml.Euler(0.1, guard=False))
    assert all(torch.equal(value, before[name]) for name, value in tasks.items())


def test_estimators_without_second_derivatives_ask_for_none() -> None:
    params, tasks = classes()

    def loss(p: Tensors, t: Tensors) -> Tensor:
        return torch.cdist(logits(p, t), t["x"][:, :3]).mean()

    answer = fomaml(params, loss, entropy, tasks, length=0.4, solver=amaml.Euler(0.1, guard=False))
    assert all(bool(value.isfinite().all()) for value in answer.grad.values())


def test_the_query_loss_is_named_where_it_is_the_one() -> None:
    with pytest.raises(ValueError, match="the query loss returned a int"):
        solved(entropy, lambda *_: 1)
    with pytest.raises(ValueError, match="the query loss isn't a pure function"):
        solved(entropy, lambda p, t: entropy(p, t) * (1 + 0.01 * next(calls)))


def test_a_loss_that_changes_during_the_solve_is_refused() -> None:
    params, tasks = classes()
    seen = itertools.count()

    def later_another(p: Tensors, t: Tensors) -> Tensor:
        return entropy(p, t) * (2 if next(seen) > 12 else 1)

    for estimator in (amaml.meta_gradient, reptile):
        seen = itertools.count()
        with pytest.raises(ValueError, match="the support loss isn't a pure function"):
            estimator(params, later_another, entropy, tasks, length=2.0, solver=amaml.Euler(0.1, guard=False))


def test_errors_of_the_callers_own_come_through() -> None:
    with pytest.raises(KeyError, match="nothing"):
        solved(lambda p, _: p["nothing"])


def test_nan_is_reported_as_nan() -> None:
    params, tasks = classes()
    tasks["x"][1, 0, 0] = float("nan")
    for loss in (entropy, by_branch):
        with pytest.raises(amaml.SolveError) as caught:
            amaml.meta_gradient(params, loss, loss, tasks, length=0.4, solver=amaml.Euler(0.1))
        assert caught.value.code is Result.NON_FINITE
        assert [failure.task for failure in caught.value.failures] == [1]


def test_tasks_of_unequal_lengths_are_refused_with_the_remedy() -> None:
    params, tasks = classes()
    ragged = {name: [value[0], value[1][:5]] for name, value in tasks.items()}
    with pytest.raises(ValueError, match="pad them to one length"):
        amaml.meta_gradient(params, entropy, entropy, ragged, length=0.4)
    with pytest.raises(ValueError, match="tasks hold no tensor"):
        amaml.meta_gradient(params, entropy, entropy, {}, length=0.4)
