"""Parameters that don't require a gradient: they stay as they are, whatever is solved or adapted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import amaml
from amaml.run.adaptation import adapt
from tests.amaml.networks import error, mlp, plane, solved
from tests.amaml.problems import Tensors, apart, unrolled


def test_frozen_parameters_neither_flow_nor_learn() -> None:
    net = mlp()
    net[0].requires_grad_(False)
    answer = solved(net, plane())
    assert error(net) < 1e-13
    for name, parameter in net.named_parameters():
        frozen = name.startswith("0.")
        assert parameter.requires_grad is not frozen
        assert torch.equal(answer.adapted[name], parameter.expand_as(answer.adapted[name])) is frozen
        assert bool(answer.grad[name].any()) is not frozen
        assert answer.per_task[name].shape == (3, *parameter.shape)
    rated = amaml.meta_gradient(
        dict(net.named_parameters()), *amaml.regression_losses(net), plane(), length=0.2, wrt=["rates"],
        rates={name: torch.full_like(value, 0.5) for name, value in net.named_parameters()},
    )  # fmt: skip
    assert not rated.rates["0.weight"].any()
    assert rated.rates["2.weight"].any()


def test_where_no_tensor_asks_for_a_gradient_all_are_trained() -> None:
    net = mlp()
    detached = {name: value.detach() for name, value in net.named_parameters()}
    answer = solved(net, plane(), params=detached)
    assert all(bool(value.any()) for value in answer.grad.values())


def test_a_network_of_frozen_parameters_alone_is_refused() -> None:
    net = mlp().requires_grad_(False)
    with pytest.raises(ValueError, match="none would be trained"):
        solved(net, plane())
    with pytest.raises(ValueError, match="none would be trained"):
        adapt(net, plane()["support_x"][0], plane()["support_y"][0])


def test_constants_may_have_any_dtype() -> None:
    embedded = {
        "w": torch.ones(3, 1, requires_grad=True),
        "table": torch.arange(6.0, dtype=torch.float64),
        "n": torch.tensor(2),
    }

    def loss(params: Tensors, x: Tensor) -> Tensor:
        assert params["n"].dtype == torch.int64
        return (x @ params["w"] - params["table"][params["n"]].float()).square().mean()

    x = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    answer = amaml.meta_gradient(embedded, loss, loss, x, length=0.1, solver=amaml.Euler(0.05))
    assert apart(answer.grad["w"], unrolled(embedded, loss, loss, x, 2, 0.05)["w"]) < 1e-5
    assert torch.equal(answer.adapted["n"], torch.tensor([2, 2]))


@pytest.mark.parametrize("arguments", [{"by": "flow", "length": 1.0}, {"by": "finetune", "epochs": 20}], ids=str)
def test_adapting_leaves_frozen_parameters(arguments: dict[str, Any]) -> None:
    net = mlp()
    net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adapted = adapt(net, plane()["support_x"][0], plane()["support_y"][0], **arguments)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for (name, own), parameter in zip(adapted.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(own, parameter) is name.startswith("0.")
        assert own.requires_grad is parameter.requires_grad
