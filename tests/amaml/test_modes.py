"""Modes of PyTorch around a call change no result, and a call changes nothing of its caller's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amaml
from amaml.kernel import disabled
from amaml.methods.fomaml.gradient import fomaml
from amaml.methods.imaml.gradient import imaml
from amaml.methods.reptile.gradient import reptile
from amaml.run.adaptation import adapt, predict
from tests.amaml.classifier import by_branch, classes, entropy, solved
from tests.amaml.jobs import small
from tests.amaml.problems import Tensors, cosines, flat, network


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
