"""The convolutional network's written-out derivatives: the traced ones to rounding, for the network as it is and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amaml
from amaml.flow.derivatives import Derivatives, TracedDerivatives
from amaml.methods.parameters import Layout
from amaml.models.conv4.derivatives import Conv4Derivatives
from amaml.models.conv4.module import Conv4
from amaml.models.derivatives import derivatives_of
from amaml.models.losses import classification_losses, regression_losses
from benchmarks.record import threads
from tests.amaml.problems import Tensors, apart, flat

Picture = tuple[int, int, int]
WAYS = 3


def network(picture: Picture, filters: int = 4, dtype: torch.dtype = torch.float64) -> Conv4:
    torch.manual_seed(0)
    return Conv4(picture, filters, WAYS).to(dtype)


def drawn(picture: Picture, batch: int = 2, points: int = 4, dtype: torch.dtype = torch.float64) -> Tensors:
    """Noise, and probabilities that don't sum to 1; a query set of another size."""
    generator = torch.Generator().manual_seed(1)
    pixels = picture[0] * picture[1] * picture[2]
    tasks = {}
    for rows, count in (("support", points), ("query", points + 2)):
        tasks[f"{rows}_x"] = torch.randn(batch, count, pixels, generator=generator, dtype=torch.float64).to(dtype)
        tasks[f"{rows}_y"] = torch.rand(batch, count, WAYS, generator=generator, dtype=torch.float64).to(dtype)
    return tasks


def of(net: nn.Module, tasks: Tensors, losses: Any = classification_losses, dtype: Any = None) -> Derivatives:
    params = {name: value.detach().to(dtype or value.dtype) for name, value in net.named_parameters()}
    with torch.no_grad():
        return derivatives_of(*losses(net), tasks, Layout(params))


def traced(net: nn.Module, tasks: Tensors, losses: Any = classification_losses) -> TracedDerivatives:
    return TracedDerivatives(*losses(net), tasks, Layout(dict(net.named_parameters())).unflatten)


def somewhere(net: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    """Parameters of each task [B, P] around the network's, and a direction."""
    theta = Layout(dict(net.named_parameters())).theta
    noise = torch.randn(2, batch, len(theta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return theta + 0.3 * noise[0].to(theta), noise[1].to(theta)


@torch.no_grad()
def all_of(derivatives: Derivatives, u: Tensor, v: Tensor) -> dict[str, Tensor]:
    loss, slope = derivatives.query(u)
    return {"gradient": derivatives.gradient(u), "hvp": derivatives.hvp(u, v), "loss": loss, "query": slope}


def assert_equal(one: Derivatives, other: Derivatives, u: Tensor, v: Tensor, bound: float) -> None:
    found, expected = all_of(one, u, v), all_of(other, u, v)
    for name, value in expected.items():
        assert apart(found[name], value) < bound, name


PICTURES = [
    (1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 17, 33), (2, 9, 7), (1, 1, 1), (3, 2, 7), (1, 5, 1), (4, 3, 3), (1, 4, 8),
]  # fmt: skip


@pytest.mark.parametrize("losses", [classification_losses, regression_losses], ids=["classification", "regression"])
@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_they_are_the_traced_ones(picture: Picture, losses: Any) -> None:
    net, tasks = network(picture), drawn(picture)
    written_out = of(net, tasks, losses)
    assert isinstance(written_out, Conv4Derivatives)
    assert_equal(written_out, traced(net, tasks, losses), *somewhere(net, 2), 1e-12)


@pytest.mark.parametrize(("batch", "points", "filters"), [(1, 1, 1), (1, 4, 16), (5, 3, 5)])
def test_tasks_points_and_filters_of_any_number(batch: int, points: int, filters: int) -> None:
    net, tasks = network((2, 8, 6), filters), drawn((2, 8, 6), batch, points)
    assert_equal(of(net, tasks), traced(net, tasks), *somewhere(net, batch), 1e-12)


@pytest.mark.parametrize("picture", [(1, 8, 8), (3, 9, 7)], ids=str)
def test_in_float32_they_are_so_to_its_rounding(picture: Picture) -> None:
    net, tasks = network(picture, dtype=torch.float32), drawn(picture, dtype=torch.float32)
    u, v = somewhere(net, 2)
    found = all_of(of(net, tasks), u, v)
    exact = traced(net.double(), {name: value.double() for name, value in tasks.items()})
    for name, value in all_of(exact, u.double(), v.double()).items():
        assert found[name].dtype == torch.float32
        assert apart(found[name].double(), value) < 1e-5, name


def test_equal_pixels_share_the_slope_of_the_maximum() -> None:
    """Of a picture with an empty background most cells have several largest pixels."""
    net, tasks = network((1, 12, 13)), drawn((1, 12, 13))
    for rows in ("support", "query"):
        tasks[f"{rows}_x"][..., 30:] = 0
    assert_equal(of(net, tasks), traced(net, tasks), *somewhere(net, 2), 1e-12)


@pytest.mark.parametrize("losses", [classification_losses, regression_losses], ids=["classification", "regression"])
@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
def test_masked_points_count_nothing(padding: float, losses: Any) -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    for rows in ("support", "query"):
        mask = torch.rand(tasks[f"{rows}_y"].shape[:2], generator=torch.Generator().manual_seed(3)) < 0.5
        mask[:, 1] = True
        for kind in ("x", "y"):
            tasks[f"{rows}_{kind}"][~mask] = padding
        tasks[f"{rows}_mask"] = mask if rows == "support" else mask.double()
    written_out = of(net, tasks, losses)
    assert isinstance(written_out, Conv4Derivatives)
    assert_equal(written_out, traced(net, tasks, losses), *somewhere(net, 2), 1e-12)


@pytest.mark.parametrize("rows", [[3], [4, 0, 2]], ids=str)
def test_some_of_the_tasks_give_the_same(rows: list[int]) -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8), batch=5)
    u, v = somewhere(net, 5)
    some = torch.tensor(rows)
    everything = all_of(of(net, tasks), u, v)
    for name, value in all_of(of(net, tasks).take(some), u[some], v[some]).items():
        assert apart(value, everything[name][some]) < 1e-13, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_one_thread_a_task_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    """On several PyTorch shares a product among them in another way where a task is alone."""
    with threads(1):
        assert_same_bits_in_any_batch(dtype)


def assert_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    net, tasks = network((1, 8, 8), 16, dtype), drawn((1, 8, 8), 5, 10, dtype)
    u, v = somewhere(net, 5)
    together = all_of(of(net, tasks), u, v)
    for task in range(5):
        own = slice(task, task + 1)
        alone = all_of(of(net, {name: value[own] for name, value in tasks.items()}), u[own], v[own])
        assert all(torch.equal(alone[name][0], together[name][task]) for name in together), task


def test_results_stay_when_more_are_asked_for() -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    derivatives, (u, v) = of(net, tasks), somewhere(net, 2)
    first = all_of(derivatives, u, v)
    kept = {name: value.clone() for name, value in first.items()}
    all_of(derivatives, 2 * u, -v)
    assert all(torch.equal(first[name], kept[name]) for name in kept)
    assert all(torch.equal(value, kept[name]) for name, value in all_of(derivatives, u, v).items())


def test_params_of_another_precision_than_the_network_are_solved_in_theirs() -> None:
    net, tasks = network((1, 8, 8), dtype=torch.float32), drawn((1, 8, 8))
    written_out = of(net, tasks, dtype=torch.float64)
    assert isinstance(written_out, Conv4Derivatives)
    double = net.double()
    assert_equal(written_out, traced(double, tasks), *somewhere(double, 2), 1e-12)


def test_a_number_that_is_none_is_told() -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    u, v = somewhere(net, 2)
    u[1, 0] = torch.nan
    found = all_of(of(net, tasks), u, v)
    for value in found.values():
        assert bool(value[0].isfinite().all())
        assert not bool(value[1].isfinite().all())


@pytest.mark.parametrize(
    "solver", [amaml.Euler(0.02), amaml.Bosh3(rtol=1e-2, atol=1e-2)], ids=lambda s: type(s).__name__
)
def test_meta_gradients_are_those_of_traced_derivatives(solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tasks = network((1, 4, 4)), drawn((1, 4, 4), batch=3)
    arguments: dict[str, Any] = {"length": 0.002, "solver": solver, "adjoint": amaml.Discrete()}
    found = amaml.meta_gradient(dict(net.named_parameters()), *classification_losses(net), tasks, **arguments)
    monkeypatch.setattr("amaml.models.derivatives._WRITTEN_OUT", ())
    expected = amaml.meta_gradient(dict(net.named_parameters()), *classification_losses(net), tasks, **arguments)
    assert torch.equal(found.stats.steps, expected.stats.steps)
    assert apart(flat(found.per_task, 1), flat(expected.per_task, 1)) < 1e-10


def halve_a_layer_by_a_hook(net: Any) -> None:
    net[1].register_forward_hook(lambda _, __, out: 0.5 * out)


def override_forward(net: Any) -> None:
    net.forward = lambda x: nn.Sequential.forward(net, x).square()


def swap_an_activation(net: Any) -> None:
    net[3] = nn.Tanh()


def swap_the_pooling(net: Any) -> None:
    net[4] = nn.AvgPool2d(2)


def add_more_to_the_variance(net: Any) -> None:
    net[2].eps = 0.1


def repeat_the_border(net: Any) -> None:
    net[1].padding_mode = "replicate"


def leave_out_a_bias(net: Any) -> None:
    net[1].register_parameter("bias", None)


def tie_weights(net: Any) -> None:
    net[6].bias = net[2].bias


def append_a_layer(net: Any) -> None:
    net.append(nn.Tanh())


def drop_a_layer(net: Any) -> None:
    net.pop(4)
    net[-1] = nn.LazyLinear(WAYS)
    net.double()(torch.zeros(1, 64, dtype=torch.float64))


EDITS = [
    halve_a_layer_by_a_hook, override_forward, swap_an_activation, swap_the_pooling, add_more_to_the_variance, repeat_the_border,
    leave_out_a_bias, tie_weights, append_a_layer, drop_a_layer,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_network_is_traced(edit: Callable[[Any], None]) -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    edit(net)
    assert not isinstance(of(net, tasks), Conv4Derivatives)


def test_what_the_modules_do_not_show_is_found_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    monkeypatch.setattr(nn.ReLU, "forward", lambda _, x: x.relu() * 1.01)
    assert not isinstance(of(net, tasks), Conv4Derivatives)


def test_subclasses_and_copies_of_the_layers_are_traced() -> None:
    class Own(Conv4):
        pass

    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    for other in (Own((1, 8, 8), 4, WAYS).double(), nn.Sequential(*net)):
        assert not isinstance(of(other, tasks), Conv4Derivatives)


def test_a_part_of_the_parameters_and_losses_of_ones_own_are_traced() -> None:
    net, tasks = network((1, 8, 8)), drawn((1, 8, 8))
    head = {name: value.detach() for name, value in net.named_parameters() if name.startswith("13.")}
    assert not isinstance(derivatives_of(*classification_losses(net), tasks, Layout(head)), Conv4Derivatives)

    class Own(amaml.models.losses.ClassificationLoss):
        pass

    losses = Own(net, "support"), Own(net, "query")
    assert not isinstance(of(net, tasks, lambda _: losses), Conv4Derivatives)
