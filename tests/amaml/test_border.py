"""Users' losses, networks and modes: any loss gets its gradient or an error, in any mode of PyTorch, and nothing of the user's is
changed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, one_hot

import amaml
from amaml.flow.result import Result
from amaml.kernel import disabled
from amaml.methods.fomaml import fomaml
from amaml.methods.imaml import imaml
from amaml.methods.reptile import reptile
from amaml.run.adaptation import adapt, predict
from tests.amaml.jobs import small
from tests.amaml.problems import Tensors, apart, cosines, flat, network, start, unrolled

LOSS = Callable[[Tensors, Tensors], Tensor]


def classes() -> tuple[Tensors, Tensors]:
    """θ of a linear classifier, and two tasks."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    params = {
        "w": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "b": torch.zeros(3, dtype=torch.float64),
    }
    return params, {"x": x, "c": torch.randint(3, (2, 10), generator=generator)}


def logits(params: Tensors, task: Tensors) -> Tensor:
    return task["x"] @ params["w"] + params["b"]


def entropy(params: Tensors, task: Tensors) -> Tensor:
    return cross_entropy(logits(params, task), task["c"])


def solved(support: Any, query: Any = None, tasks: Any = None, **options: Any) -> amaml.MetaGradient:
    params, own = classes()
    given = {"length": 0.4, "solver": amaml.Euler(0.1, guard=False), **options}
    return amaml.meta_gradient(params, support, query or support, own if tasks is None else tasks, **given)


def by_one_hot(params: Tensors, task: Tensors) -> Tensor:
    return (logits(params, task) - one_hot(task["c"], 3)).square().mean()


def by_branch(params: Tensors, task: Tensors) -> Tensor:
    loss = entropy(params, task)
    return loss if loss > 1 else 2 * loss


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


def inference() -> AbstractContextManager[Any]:
    return torch.inference_mode()


def default_device() -> AbstractContextManager[Any]:
    device: AbstractContextManager[Any] = torch.device("meta")
    return device


class DefaultFloat64:
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": inference,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "default dtype": DefaultFloat64,
    "default device": default_device,
}


def own_network(kind: str) -> nn.Module:
    if kind == "mlp":
        return network([5], torch.float32)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 5), nn.GELU(), nn.Linear(5, 1))


def everything(net: nn.Module, tasks: Tensors) -> list[Tensor]:
    """The results of every estimator, every kind of solver and every adaptation for a network."""
    params, losses = dict(net.named_parameters()), amaml.regression_losses(net)
    one = amaml.meta_gradient(params, *losses, tasks, length=0.3, solver=amaml.Dopri5(1e-4), certify=True)
    assert one.certificate is not None
    other = amaml.meta_gradient(
        params, *losses, tasks, length=0.3, solver=amaml.Heun(0.05), adjoint=amaml.Interpolated()
    )
    parts = [one.per_task, one.rates, other.grad]
    parts += [
        estimator(params, *losses, tasks, length=0.3, solver=amaml.Heun(0.05)).grad for estimator in (fomaml, reptile)
    ]
    parts.append(imaml(params, *losses, tasks, length=0.3, proximal=5.0).grad)
    adapted = [
        adapt(net, tasks["support_x"][0], tasks["support_y"][0], **how) for how in ({"length": 0.3}, FINE_TUNING)
    ]
    return [
        *map(flat, parts),
        *(flat(dict(own.named_parameters())) for own in adapted),
        one.length,
        one.certificate.error,
    ]


FINE_TUNING: dict[str, Any] = {"by": "finetune", "epochs": 3}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["mlp", "other", "batched mlp"])
def test_modes_around_a_call_change_nothing(mode: str, kind: str) -> None:
    net, tasks = own_network("other" if kind == "other" else "mlp"), cosines(2, 9, torch.float32)
    with disabled() if kind == "batched mlp" else nullcontext():
        expected = everything(net, tasks)
        with MODES[mode]():
            found = everything(net, tasks)
            assert not any(value.requires_grad for value in found[:6])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.detach(), other.detach())


@pytest.mark.parametrize("kind", ["mlp", "other"])
def test_tensors_made_in_inference_mode_are_solved(kind: str) -> None:
    expected = everything(own_network(kind), cosines(2, 9, torch.float32))
    with torch.inference_mode():
        net, tasks = own_network(kind), cosines(2, 9, torch.float32)
    for one, other in zip(everything(net, tasks), expected, strict=True):
        assert torch.equal(one.detach(), other.detach())


def test_losses_of_ones_own_are_solved_without_autocast() -> None:
    expected = flat(solved(by_branch).grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flat(solved(by_branch).grad), expected)
        assert torch.is_autocast_enabled("cpu")


def test_predictions_are_made_without_autocast(tmp_path: Path) -> None:
    amaml.train(small(meta={"iterations": 1}, evaluation={"epochs": 1})).save(tmp_path / "init")
    net = amaml.load(tmp_path / "init")
    expected = predict(net, [[0.3], [0.5]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(net, [[0.3], [0.5]]), expected)


def test_no_random_numbers_are_drawn_from_the_callers_generators() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    net, tasks = network([5], torch.float32), cosines(2, 9, torch.float32)
    torch.manual_seed(3)
    everything(net, tasks)
    solved(by_branch)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[arg-type]


def test_params_given_are_not_changed() -> None:
    params, tasks = classes()
    asked = {name: value.requires_grad_() for name, value in params.items()}
    before = {name: value.detach().clone() for name, value in asked.items()}
    answer = amaml.meta_gradient(asked, entropy, entropy, tasks, length=0.4, solver=amaml.Euler(0.1))
    for name, value in asked.items():
        assert torch.equal(value, before[name])
        assert value.requires_grad
        assert value.grad is None
        assert answer.adapted[name].untyped_storage().data_ptr() != value.untyped_storage().data_ptr()


RATED = {
    "kernel euler": (amaml.Euler(0.05), amaml.Discrete()),
    "kernel heun": (amaml.Heun(0.05), amaml.Discrete()),
    "kernel rk4": (amaml.RK4(0.05), amaml.Discrete()),
    "kernel dopri5": (amaml.Dopri5(1e-9), amaml.Discrete()),
    "kernel bosh3": (amaml.Bosh3(1e-9), amaml.Discrete()),
    "interpolated": (amaml.Dopri5(1e-9), amaml.Interpolated()),
    "backsolve": (amaml.Dopri5(1e-9), amaml.Backsolve()),
    "torchdiffeq": (amaml.TorchDiffEq("rk4", step=0.05), amaml.Discrete()),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("how", RATED)
def test_rates_of_zero_keep_a_parameter_and_leave_its_gradient(how: str, batched: bool) -> None:
    """The same as with rates so small that nothing moves."""
    net, tasks = network([5, 5]), cosines(2, 9)
    solver, adjoint = RATED[how]
    answers = []
    for rate in (0.0, 1e-30):
        rates = {
            name: torch.full_like(value, rate if name.startswith("0.") else 0.7) for name, value in start(net).items()
        }
        with disabled() if batched else nullcontext():
            answers.append(
                amaml.meta_gradient(
                    start(net), *amaml.regression_losses(net), tasks, length=0.3, solver=solver, adjoint=adjoint,
                    rates=rates, proximal=0.1, wrt=["rates", "length", "proximal"],
                )
            )  # fmt: skip
    zero, tiny = answers
    assert torch.equal(zero.adapted["0.weight"], start(net)["0.weight"].expand(2, 5, 1))
    assert zero.grad["0.weight"].any()
    for name in ("per_task", "rates"):
        torch.testing.assert_close(flat(getattr(zero, name)), flat(getattr(tiny, name)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(zero.proximal, tiny.proximal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", [amaml.Euler(0.05), amaml.Dopri5(1e-6), amaml.Bosh3(1e-6)], ids=str)
def test_rates_of_zero_for_all_are_no_flow_at_all(solver: Any, batched: bool) -> None:
    net, tasks = network([5]), cosines(2, 9)
    rates = {name: torch.zeros_like(value) for name, value in start(net).items()}
    with disabled() if batched else nullcontext():
        answer = amaml.meta_gradient(
            start(net), *amaml.regression_losses(net), tasks, length=0.3, solver=solver, rates=rates
        )
    expected = unrolled(start(net), *amaml.regression_losses(net), tasks, 0, 0.0)
    assert apart(flat(answer.grad), flat(expected)) < 1e-13


def test_the_body_is_learned_through_the_head_alone() -> None:
    """Almost no inner loop (Raghu et al., arXiv 1909.09157): only the head is adapted, and the body's gradient goes through
    it."""
    params, tasks = classes()
    rates = {"w": torch.zeros_like(params["w"]), "b": torch.ones_like(params["b"])}
    answer = solved(entropy, rates=rates)
    assert apart(flat(answer.grad), flat(unrolled(params, entropy, entropy, tasks, 4, 0.1, rates))) < 1e-13
