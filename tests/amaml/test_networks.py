"""A network is what it computes: edited, hooked and tied networks get their own gradient, and stay as they are."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amaml
from amaml.run.adaptation import adapt, loss_curve
from tests.amaml.networks import (
    STEP,
    STEPS,
    error,
    hold_what_can_not_be_copied,
    is_fast,
    mlp,
    normalised,
    plane,
    solved,
)
from tests.amaml.problems import apart, flat, unrolled


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "relu"])
def test_a_plain_sequence_of_linear_layers_is_as_fast_as_an_mlp(activation: str) -> None:
    net = mlp(activation=activation)
    plain = nn.Sequential(*net)
    assert is_fast(net)
    assert is_fast(plain)
    assert error(plain) < 1e-13
    shared = nn.Sequential(net[0], net[1], net[2], net[1], net[4])  # one activation in two places computes the same
    assert is_fast(shared)
    assert error(shared) < 1e-13


def swap_activation(net: Any) -> None:
    net[1] = nn.ReLU()


def swap_all_activations_and_one_differs(net: Any) -> None:
    net[1], net[3] = nn.Softplus(), nn.Softplus(beta=2)


def end_with_an_activation(net: Any) -> None:
    net.append(nn.Tanh())


def end_with_the_activation_that_is_there(net: Any) -> None:
    net.append(net[1])


def drop_an_activation(net: Any) -> None:
    net.pop(3)


def insert_dropout(net: Any) -> None:
    net.insert(2, nn.Dropout(0.5))
    net.eval()


def repeat_a_layer(net: Any) -> None:
    net.insert(3, net[2])


def tie_weights(net: Any) -> None:
    net[2].bias = net[0].bias


def leave_out_biases(net: Any) -> None:
    for index in (0, 2, 4):
        net[index] = nn.Linear(net[index].in_features, net[index].out_features, bias=False).double()


def leave_out_the_last_bias(net: Any) -> None:
    net[4].register_parameter("bias", None)


def scale_inputs_by_a_hook(net: Any) -> None:
    net.register_forward_pre_hook(lambda _, args: (3 * args[0],))


def scale_a_layer_by_a_hook(net: Any) -> None:
    net[2].register_forward_hook(lambda _, __, out: 0.5 * out)


def add_by_a_hook_that_names_the_network(net: Any) -> None:
    net.register_forward_hook(lambda _, __, out: out + net[0].weight.square().mean())


def override_forward(net: Any) -> None:
    net.forward = lambda x: nn.Sequential.forward(net, x).square()


def override_a_layers_forward(net: Any) -> None:
    layer = net[2]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias) * 2


def normalise_weights(net: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(net[0])


def normalise_weights_the_old_way(net: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(net[0])


def hold_a_buffer(net: Any) -> None:
    net.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
    net.register_forward_hook(lambda module, _, out: out * module.scale)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def use_a_subclass_of_linear(net: Any) -> None:
    net[2] = Doubled(6, 6).double()


EDITS: list[Callable[[Any], None]] = [
    swap_activation, swap_all_activations_and_one_differs, end_with_an_activation, end_with_the_activation_that_is_there,
    drop_an_activation, insert_dropout, repeat_a_layer, tie_weights, leave_out_biases, leave_out_the_last_bias,
    scale_inputs_by_a_hook, scale_a_layer_by_a_hook, add_by_a_hook_that_names_the_network, override_forward,
    override_a_layers_forward, normalise_weights, normalise_weights_the_old_way, hold_a_buffer,
    use_a_subclass_of_linear,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_network_gets_the_gradient_of_what_it_is(edit: Callable[[Any], None]) -> None:
    net = mlp()
    edit(net)
    assert not is_fast(net)
    assert error(net) < 1e-13


def test_a_subclass_that_computes_otherwise_gets_its_own_gradient() -> None:
    class Squared(amaml.MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    torch.manual_seed(0)
    assert error(Squared(2, [6], 1).double()) < 1e-13


def test_what_the_modules_do_not_show_is_found_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    net = mlp()
    monkeypatch.setattr(nn.Tanh, "forward", lambda _, x: x.tanh() * 1.01)
    assert not is_fast(net)
    assert error(net) < 1e-13


def test_a_hook_on_all_modules_is_seen() -> None:
    net = mlp()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, out: 2 * out if type(module) is nn.Tanh else None
    )
    try:
        assert not is_fast(net)
        assert error(net) < 1e-13
    finally:
        handle.remove()


def test_params_in_another_order_or_fewer_are_taken_by_name() -> None:
    net = mlp()
    params = dict(net.named_parameters())
    other_order = dict(reversed(params.items()))
    assert not is_fast(net, other_order)
    assert error(net, params=other_order) < 1e-13
    head = {name: value for name, value in params.items() if name.startswith("4.")}
    assert not is_fast(net, head)
    assert error(net, params=head) < 1e-13
    elsewhere = {name: value.detach() + 0.1 for name, value in params.items()}
    assert is_fast(net, elsewhere)
    assert error(net, params=elsewhere) < 1e-13


def test_adapting_an_edited_network_trains_what_it_is() -> None:
    net = mlp()
    net.append(nn.Sigmoid())
    x, y = plane()["support_x"][0], plane()["support_y"][0]
    adapted = adapt(net, x, y, length=0.5)
    wrapped = adapt(nn.Sequential(net), x, y, length=0.5)
    torch.testing.assert_close(adapted(x), wrapped(x), rtol=1e-10, atol=1e-12)
    hold_what_can_not_be_copied(net)
    torch.testing.assert_close(adapt(net, x, y, length=0.5)(x), adapted(x), rtol=1e-10, atol=1e-12)


def test_batch_norm_takes_each_tasks_statistics_and_keeps_the_callers() -> None:
    net = normalised()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    answer = solved(net, plane())
    adapt(net, plane()["support_x"][0], plane()["support_y"][0], length=0.1)
    loss_curve(net, plane()["support_x"][0], plane()["support_y"][0], length=0.1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    reference = unrolled(dict(net.named_parameters()), *amaml.regression_losses(net), plane(), STEPS, STEP)
    assert apart(flat(answer.grad), flat(reference)) < 1e-12
    assert error(normalised().eval()) < 1e-12


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(2, 1, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.attention(x[None])[0])
        return out


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells, self.out = kind(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.cells(x[None])[0][0])
        return out


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", [Attention, lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU)])
def test_networks_without_a_fused_second_derivative_work(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert error(net) < 1e-12
    before = torch.backends.cuda.flash_sdp_enabled()
    answer = solved(net, plane())
    assert torch.backends.cuda.flash_sdp_enabled() is before
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert apart(flat(answer.grad), flat(solved(net, plane()).grad)) < 1e-12


@pytest.mark.parametrize(
    "make", [mlp, normalised, lambda: nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 1)).double()]
)
def test_threads_share_a_network(make: Callable[[], nn.Module]) -> None:
    net = make()
    batches = [{name: value + 0.1 * index for name, value in plane().items()} for index in range(8)]
    expected = [flat(solved(net, batch).grad) for batch in batches]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: flat(solved(net, batch).grad), batches * 2))
    for one, other in zip(found, expected * 2, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(type(parameter) is nn.Parameter for parameter in net.parameters())


def test_what_a_network_holds_beside_its_modules_is_no_hindrance() -> None:
    net = mlp()
    hold_what_can_not_be_copied(net)
    assert is_fast(net)
    assert error(net) < 1e-13


def test_threads_share_a_network_that_holds_what_can_not_be_copied() -> None:
    net = normalised()
    hold_what_can_not_be_copied(net)
    expected = flat(solved(net, plane()).grad)
    with ThreadPoolExecutor(4) as pool:
        for grad in pool.map(lambda _: flat(solved(net, plane()).grad), range(8)):
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)
    assert all(type(parameter) is nn.Parameter for parameter in net.parameters())


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.locks = nn.Linear(2, 1), [nn.Linear(1, 1), threading.Lock()]


def test_a_network_that_can_not_be_copied_at_all_is_refused() -> None:
    net = Locked().double()
    with pytest.raises(ValueError, match="Locked can't be copied"):
        solved(net, plane())


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight**3

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return 3 * weight**2 * slopes[0]


def test_a_network_that_reads_its_parameters_past_its_modules_is_refused() -> None:
    net = mlp()
    net.register_forward_hook(lambda _, __, out: out + Cubed.apply(net[0].weight).mean())
    with pytest.raises(ValueError, match=r"computes with 0\.weight in a way in which params can't take their place"):
        solved(net, plane())
