"""Adapting a loaded model to rows: flow and fine-tuning against loops by hand, units, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amaml.models.mlp import MLP
from amaml.registry import build_family
from amaml.run.adaptation import adapt, loss_curve, predict
from amaml.run.initialization import metadata_of, write
from amaml.run.learned_model import LearnedModel, load
from amaml.spec import CosMixtureSpec, EvaluationSpec, JobSpec, MLPSpec, RuntimeSpec, SolverSpec, TrajectorySpec

SPEC = JobSpec(
    family=CosMixtureSpec(dim=2, train_tasks=3, test_tasks=2),
    model=MLPSpec(hidden=[6]),
    trajectory=TrajectorySpec(length=0.2, schedule=[(5, 0.5), (50, 0.9)]),
    solver=SolverSpec(kind="euler", step=0.1),
    evaluation=EvaluationSpec(epochs=15, lr=0.02),
    runtime=RuntimeSpec(dtype="float64"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    path: Path = tmp_path_factory.mktemp("initialization") / "init"
    torch.manual_seed(2)
    family = build_family(SPEC.family, seed=0, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    write(path, dict(MLP(2, [6], 1).double().named_parameters()), metadata_of(SPEC, family, 10))
    return load(path)


def rows(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (2, 1))  # type: ignore[return-value]


def trained(model: nn.Module, x: Tensor, y: Tensor, make: Any, steps: int) -> nn.Module:
    own = MLP(2, [6], 1).double()
    own.load_state_dict(model.state_dict())
    optimizer = make(own.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (own(x) - y).square().mean()).backward()
        optimizer.step()
    return own


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_by_flow_over_the_runs_own_length(model: nn.Module) -> None:
    x, y = rows()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = adapt(model, x, y)
    # θ is that after 10 meta-iterations, when the trajectory's length was 0.5: five steps of 0.1
    assert_alike(adapted, trained(model, x, y, lambda p: torch.optim.SGD(p, lr=0.1), 5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(adapted, nn.Module)
    own = LearnedModel.of(adapted)
    assert own is not None
    assert own.module is adapted
    assert own.spec == SPEC


def test_by_flow_over_another_length(model: nn.Module) -> None:
    x, y = rows()
    assert_alike(adapt(model, x, y, length=1.2), trained(model, x, y, lambda p: torch.optim.SGD(p, lr=0.1), 12))


@pytest.mark.parametrize(("given", "epochs", "lr"), [({}, 15, 0.02), ({"epochs": 3, "lr": 0.1}, 3, 0.1)])
def test_by_finetune(model: nn.Module, given: dict[str, Any], epochs: int, lr: float) -> None:
    x, y = rows()
    adapted = adapt(model, x, y, by="finetune", **given)
    assert_alike(adapted, trained(model, x, y, lambda p: torch.optim.Adam(p, lr=lr, weight_decay=1e-6), epochs))


def test_raw_units(model: nn.Module) -> None:
    x, y = rows()
    learned = LearnedModel.of(model)
    assert learned is not None
    scaling = learned.scaling
    raw_x = x * x.new_tensor(scaling.x_std) + x.new_tensor(scaling.x_mean)
    adapted = adapt(model, raw_x, scaling.raw_y(y), units="raw")
    assert_alike(adapted, adapt(model, x, y))
    torch.testing.assert_close(predict(adapted, raw_x), scaling.raw_y(adapted(x)).detach())


def test_rows_as_lists(model: nn.Module) -> None:
    x, y = rows(3)
    assert_alike(adapt(model, x.tolist(), y.flatten().tolist()), adapt(model, x, y))


def own_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (0.5 * (model(x) - y).square().mean()).item()


@pytest.mark.parametrize("length", [0.05, 0.5, 3.3])
def test_the_curve_along_fixed_steps_is_that_of_each_step(model: nn.Module, length: float) -> None:
    x, y = rows()
    query = tuple(rows(5))
    curve = loss_curve(model, x, y, query=query, length=length)
    count = max(1, round(length / 0.1))
    assert curve.over == "t"
    assert (curve.at[0], curve.at[-1], len(curve.at)) == (0.0, length, min(count, 20) + 1)
    for at, support, asked in zip(curve.at, curve.support, curve.query or [], strict=True):
        there = trained(model, x, y, lambda p: torch.optim.SGD(p, lr=length / count), round(at / length * count))
        assert support == pytest.approx(own_loss(there, x, y), rel=1e-9)
        assert asked == pytest.approx(own_loss(there, *query), rel=1e-9)
    assert curve.support[-1] == pytest.approx(own_loss(adapt(model, x, y, length=length), x, y), rel=1e-12)


def test_the_curve_of_an_adaptive_solver_ends_where_adapt_does() -> None:
    net = MLP(1, [4], 1).double()
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    curve = loss_curve(net, x, x.sin())
    assert curve.query is None
    assert curve.at == pytest.approx([2.0 * point / 20 for point in range(21)])
    assert curve.support == sorted(curve.support, reverse=True)
    assert curve.support[-1] == pytest.approx(own_loss(adapt(net, x, x.sin()), x, x.sin()), rel=1e-5)


def test_the_curve_of_fine_tuning_has_every_tenth_epoch(model: nn.Module) -> None:
    x, y = rows()
    curve = loss_curve(model, x, y, by="finetune", epochs=25, lr=0.02)
    assert (curve.over, curve.at) == ("epochs", [0, 10, 20, 25])
    ends = [model, *(adapt(model, x, y, by="finetune", epochs=epochs, lr=0.02) for epochs in (10, 20, 25))]
    assert curve.support == pytest.approx([own_loss(end, x, y) for end in ends], rel=1e-9)
    with pytest.raises(ValueError, match="query x has 2 rows and query y has 1"):
        loss_curve(model, x, y, query=(x[:2], y[:1]))


def test_a_model_that_was_not_loaded() -> None:
    net = MLP(1, [4], 1)
    x = torch.linspace(-1, 1, 9)
    adapted = adapt(net, x, x.sin(), by="finetune", epochs=300, lr=0.02)
    assert (adapted(x[:, None]) - x.sin()[:, None]).square().mean() < 1e-2
    flown = adapt(net, x, x.sin())
    assert (
        0
        < (flown(x[:, None]) - x.sin()[:, None]).square().mean()
        < (net(x[:, None]) - x.sin()[:, None]).square().mean()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": [[1.0, 2.0, 3.0]]}, r"x has shape \(1, 3\), the model needs \[rows, 2\]"),
        ({"x": []}, "at least one row"),
        ({"x": [[1.0, 2.0], [3.0]]}, "give every row the same length"),
        ({"x": [["a", "b"]]}, "can't be read as rows of numbers"),
        ({"x": [[1.0, float("nan")]]}, "x holds NaN or infinite values"),
        ({"y": [[1e400]]}, "y holds NaN or infinite values"),
        ({"y": [[1.0], [2.0]]}, "x has 1 rows and y has 2"),
        ({"y": [[1.0, 2.0]]}, r"the model needs \[rows, 1\]"),
        ({"by": "magic"}, "by must be flow or finetune, got 'magic'"),
        ({"units": "furlongs"}, "units must be standardised or raw, got 'furlongs'"),
        ({"epochs": 3}, "epochs has no meaning with by='flow'"),
        ({"by": "finetune", "length": 3.0}, "length has no meaning with by='finetune'"),
        ({"by": "flow", "learned_rates": True}, "learned_rates has no meaning with by='flow'"),
        ({"by": "finetune", "learned_rates": True}, "the model has learned no rates: leave learned_rates out"),
        ({"by": "finetune", "epochs": 0}, "at least 1 epoch"),
        ({"by": "finetune", "lr": -1.0}, "positive finite lr"),
        ({"length": 0.0}, "length must be a positive finite number"),
    ],
)
def test_what_is_refused(model: nn.Module, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapt(model, **{"x": [[1.0, 2.0]], "y": [[0.5]], **given})


def test_raw_units_need_a_scaling() -> None:
    net = MLP(1, [4], 1)
    with pytest.raises(ValueError, match=r"load it by amaml\.load"):
        adapt(net, [0.0], [0.0], units="raw")
    with pytest.raises(ValueError, match=r"load it by amaml\.load"):
        predict(net, [0.0])
