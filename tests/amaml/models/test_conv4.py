"""The convolutional network: shapes, a picture's own normalisation, and its meta-gradient against unrolled autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call

from amaml.flow.solvers import Euler
from amaml.methods.amaml.gradient import meta_gradient
from amaml.models.conv4.module import Conv4
from amaml.models.losses import classification_losses
from amaml.registry import build_model
from amaml.spec import Conv4Spec, JobSpec


@pytest.mark.parametrize(
    ("picture", "left"),
    [((1, 8, 8), 1), ((3, 84, 84), 25), ((1, 28, 28), 1), ((1, 1, 1), 1), ((2, 9, 33), 4), ((3, 2, 7), 3)],
)
def test_pictures_of_any_size(picture: tuple[int, int, int], left: int) -> None:
    """`left`: places of the last block, as halving (and dropping odd ends) until a side is 1 leaves them."""
    net = Conv4(picture, 8, 5)
    pixels = picture[0] * picture[1] * picture[2]
    assert net(torch.randn(3, pixels)).shape == (3, 5)
    last = list(net.named_parameters())[-2]
    assert last[1].shape == (5, 8 * left)


def test_the_original_sizes_leave_what_the_original_does() -> None:
    """Finn et al.: 28 × 28 leave one place, 84 × 84 leave 5 × 5."""
    assert list(Conv4((3, 84, 84), 32, 5).parameters())[-2].shape == (5, 800)
    assert list(Conv4((1, 28, 28), 64, 20).parameters())[-2].shape == (20, 64)


def test_a_prediction_does_not_depend_on_the_pictures_beside() -> None:
    torch.manual_seed(0)
    net = Conv4((1, 8, 8), 8, 3).double()
    x = torch.randn(6, 64, dtype=torch.float64)
    together = net(x)
    torch.testing.assert_close(together, torch.cat([net(row[None]) for row in x]))


def test_it_has_no_state_beside_its_parameters() -> None:
    assert not list(Conv4((1, 8, 8), 8, 3).buffers())


def test_pooling_is_torchs() -> None:
    from amaml.models.conv4.module import _Halved

    x = torch.randn(2, 3, 7, 6)
    assert torch.equal(_Halved()(x), torch.nn.functional.max_pool2d(x, 2))


def problem() -> tuple[Conv4, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    net = Conv4((1, 4, 4), 4, 3).double()
    labels = torch.eye(3, dtype=torch.float64).repeat(2, 2, 1)
    tasks = {
        "support_x": torch.randn(2, 6, 16, dtype=torch.float64), "support_y": labels,
        "query_x": torch.randn(2, 6, 16, dtype=torch.float64), "query_y": labels,
    }  # fmt: skip
    return net, {name: parameter.detach() for name, parameter in net.named_parameters()}, tasks


def test_its_meta_gradient_is_that_of_unrolled_autograd() -> None:
    net, theta, tasks = problem()
    support, query = classification_losses(net)
    found = meta_gradient(theta, support, query, tasks, length=0.15, solver=Euler(step=0.05, guard=False))

    start = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
    total = torch.zeros((), dtype=torch.float64)
    for task in range(2):
        u: dict[str, Tensor] = dict(start)
        for _ in range(3):
            logits = functional_call(net, u, (tasks["support_x"][task],))
            loss = torch.nn.functional.cross_entropy(logits, tasks["support_y"][task])
            slopes = torch.autograd.grad(loss, list(u.values()), create_graph=True)
            u = {name: value - 0.05 * slope for (name, value), slope in zip(u.items(), slopes, strict=True)}
        logits = functional_call(net, u, (tasks["query_x"][task],))
        total = total + torch.nn.functional.cross_entropy(logits, tasks["query_y"][task]) / 2
    expected = torch.autograd.grad(total, list(start.values()))
    torch.testing.assert_close(found.loss.mean(), total.detach())
    for (name, gradient), other in zip(found.grad.items(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-11, msg=name)
    assert max(gradient.abs().max().item() for gradient in found.grad.values()) > 1e-3


def test_its_random_start_is_a_function_of_the_seed() -> None:
    build: dict[str, Any] = {"in_features": 64, "out_features": 3, "picture": (1, 8, 8)}
    one, again, other = (build_model(Conv4Spec(filters=4), seed=seed, **build).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])


@pytest.mark.parametrize("family", [{"kind": "sinusoid"}, {"kind": "poisson"}])
def test_families_without_pictures_are_refused(family: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="conv4 reads pictures, and family") as caught:
        JobSpec.model_validate({"family": family, "model": {"kind": "conv4"}})
    assert caught.value.errors()[0]["ctx"]["error"].field == ("model", "kind")


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Conv4((0, 8, 8), 8, 3)
