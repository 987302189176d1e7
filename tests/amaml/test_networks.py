"""A network is what it computes: edited, hooked, tied and half-frozen networks get their own gradient, and stay as they are."""

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
from amaml.methods.parameters import Layout
from amaml.models.derivatives import derivatives_of
from amaml.models.losses import classification_losses
from amaml.models.mlp.derivatives import MLPDerivatives
from amaml.run.adaptation import adapt, loss_curve
from tests.amaml.problems import Tensors, apart, flat, unrolled

STEPS, STEP = 6, 0.04


def plane(batch: int = 3, points: int = 12) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(batch, points, 2, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.randn(batch, points, 1, generator=generator, dtype=torch.float64)
    return {"support_x": x, "support_y": (3 * x[..., :1]).sin() + 0.1 * y, "query_x": -x, "query_y": y}


def solved(net: nn.Module, tasks: Any, params: Any = None, losses: Any = amaml.regression_losses) -> amaml.MetaGradient:
    given = dict(net.named_parameters()) if params is None else params
    return amaml.meta_gradient(given, *losses(net), tasks, length=STEPS * STEP, solver=amaml.Euler(STEP, guard=False))


def error(net: nn.Module, tasks: Any = None, params: Any = None, losses: Any = amaml.regression_losses) -> float:
    """Relative distance from autograd through the unrolled steps."""
    tasks = plane() if tasks is None else tasks
    given = dict(net.named_parameters()) if params is None else params
    answer = solved(net, tasks, params, losses)
    return apart(flat(answer.grad), flat(unrolled(given, *losses(net), tasks, STEPS, STEP)))


def is_fast(net: nn.Module, params: Any = None, tasks: Any = None) -> bool:
    layout = Layout(dict(net.named_parameters()) if params is None else params)
    with torch.no_grad():
        found = derivatives_of(*amaml.regression_losses(net), plane() if tasks is None else tasks, layout)
    return isinstance(found, MLPDerivatives)


def mlp(seed: int = 1, activation: Any = "tanh") -> amaml.MLP:
    torch.manual_seed(seed)
    return amaml.MLP(2, [6, 6], 1, activation).double()


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


def hold_what_can_not_be_copied(net: Any) -> None:
    net.lock = threading.Lock()
    net.left_over = net[0].weight * 2


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


def test_adapting_an_edited_network_trains_what_it_is() -> None:
    net = mlp()
    net.append(nn.Sigmoid())
    x, y = plane()["support_x"][0], plane()["support_y"][0]
    adapted = adapt(net, x, y, length=0.5)
    wrapped = adapt(nn.Sequential(net), x, y, length=0.5)
    torch.testing.assert_close(adapted(x), wrapped(x), rtol=1e-10, atol=1e-12)
    hold_what_can_not_be_copied(net)
    torch.testing.assert_close(adapt(net, x, y, length=0.5)(x), adapted(x), rtol=1e-10, atol=1e-12)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()


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


def padded(value: float) -> tuple[list[Tensors], Tensors]:
    """Tasks of 4, 7 and 9 points, and the same padded to 12 with `value`."""
    whole, sizes = plane(), (4, 7, 9)
    ragged = [{name: rows[task][:size] for name, rows in whole.items()} for task, size in enumerate(sizes)]
    masked = {name: rows.clone() for name, rows in whole.items()}
    mask = torch.arange(12) < torch.tensor(sizes)[:, None]
    for rows in masked.values():
        rows[~mask] = value
    return ragged, {**masked, "support_mask": mask, "query_mask": mask.double()}


@pytest.mark.parametrize("value", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("losses", [amaml.regression_losses, classification_losses])
def test_padded_points_count_nothing(value: float, losses: Any) -> None:
    net = mlp()
    ragged, masked = padded(value)
    answer = solved(net, masked, losses=losses)
    for task, own in enumerate(ragged):
        alone = solved(net, {name: rows[None] for name, rows in own.items()}, losses=losses)
        torch.testing.assert_close(flat(answer.per_task, 1)[task], flat(alone.grad), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(answer.loss[task], alone.loss[0], rtol=1e-11, atol=1e-13)


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


def test_masks_without_sense_are_refused() -> None:
    net = mlp()
    _, masked = padded(0.0)
    none = masked["support_mask"].clone()
    none[1] = False
    for mask, sentence in (
        (none, "leaves no point of task 1"),
        (masked["support_mask"][:, :5], r"must be one tensor \[tasks, points\] of shape \[3, 12\], got \[3, 5\]"),
        (masked["query_mask"] * 0.5, "other values than 0 and 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            solved(net, {**masked, "support_mask": mask})
    ragged = {name: [own[name] for own in padded(0.0)[0]] for name in plane()}
    with pytest.raises(ValueError, match=r"pad them to one length.*support_mask"):
        solved(net, ragged)
