"""Poisson's equation: closed forms, the residual of the exact solution, derivatives through the Laplacian, and that it learns."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import amaml
from amaml.families.points import judged_points
from amaml.families.poisson.family import Basis, PoissonFamily, ResidualLoss
from amaml.flow.derivatives import TracedDerivatives
from amaml.methods.parameters import Layout
from amaml.registry import build_family
from amaml.run.training import train
from amaml.spec import JobSpec, PoissonSpec

DIMS = pytest.mark.parametrize("dim", [1, 2])


def build(seed: int = 0, **fields: Any) -> PoissonFamily:
    spec = PoissonSpec(**({"shots": 12, "queries": 9, "boundary": 5, "test_tasks": 4} | fields))
    family = build_family(spec, seed=seed, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    assert isinstance(family, PoissonFamily)
    return family


class Exact1D(nn.Module):
    """A task's own solution as a network of its coefficients, in standardised units and torch's operations alone."""

    def __init__(self, coefficients: np.ndarray[Any, Any], scale: float, modes: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.from_numpy(coefficients / scale))
        self.modes = modes

    def forward(self, s: Tensor) -> Tensor:
        x = 0.5 + 0.5 * s
        k = torch.arange(1, self.modes + 1, dtype=s.dtype)
        sines = torch.sin(k * math.pi * x) / k**2
        value: Tensor = torch.cat((sines, 1 - x, x), dim=-1) @ self.c[:, None]
        return value


class Exact2D(Exact1D):
    def forward(self, s: Tensor) -> Tensor:
        x, y = (0.5 + 0.5 * s).unbind(dim=-1)
        modes, pi = range(1, self.modes + 1), math.pi
        terms = [2 * torch.sin(j * pi * x) * torch.sin(k * pi * y) / (j * j + k * k) for j in modes for k in modes]
        terms += [(1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y]
        for along, across in ((x, y), (y, x)):
            for k in modes:
                for side in (1 - across, across):
                    terms.append(torch.sin(k * pi * along) * torch.sinh(k * pi * side) / math.sinh(k * pi) / k)
        value: Tensor = torch.stack(terms, dim=-1) @ self.c[:, None]
        return value


@DIMS
@pytest.mark.parametrize("modes", [1, 3])
def test_the_exact_solution_has_no_residual(dim: int, modes: int) -> None:
    family = build(dim=dim, modes=modes, judged_by="residual")
    _, solutions = family._unseen("test", 4)
    tasks = family.evaluation_batch("test", 4)
    for task in range(4):
        net = (Exact1D if dim == 1 else Exact2D)(solutions[task], family.scaling.y_std[0], modes)
        own = {name: tensor[task] for name, tensor in tasks.items()}
        params = dict(net.named_parameters())
        support, query = family.objective.losses(net)
        assert support(params, own).item() < 1e-24
        assert torch.allclose(net(own["query_x"]), own["query_y"], atol=1e-12)
        shifted = {"c": net.c + 0.1}
        assert support(shifted, own).item() > 1e-4
        batch = family.training_batch(0, 4)
        assert query(params, {name: tensor[0] for name, tensor in batch.items()}).item() > 1e-3  # another task's


@DIMS
def test_forcing_is_minus_the_laplacian_by_differences(dim: int) -> None:
    basis, h = Basis(dim, 3), 1e-4
    x = np.random.default_rng(0).uniform(0.1, 0.9, (7, dim))
    laplacian = sum(
        (basis.solutions(x + h * axis) - 2 * basis.solutions(x) + basis.solutions(x - h * axis)) / h**2
        for axis in np.eye(dim)
    )
    np.testing.assert_allclose(-laplacian, basis.forcings(x), atol=2e-5)


@DIMS
def test_forced_solutions_vanish_on_the_boundary(dim: int) -> None:
    points = build(dim=dim)._points(np.random.default_rng(0), 3)
    assert points.shape == (3 + (2 if dim == 1 else 20), dim)
    around = ((points == 0) | (points == 1)).any(axis=1)
    assert around.tolist() == [False] * 3 + [True] * (len(points) - 3)
    assert np.abs(Basis(dim, 3).forced(points[around])[0]).max() < 1e-14


@DIMS
def test_solutions_and_forcings_have_the_spread_that_scales_them(dim: int) -> None:
    basis, random = Basis(dim, 3), np.random.default_rng(0)
    x = judged_points(dim, 0.0, 1.0)
    coefficients = random.standard_normal((basis.size, 4000))
    assert np.std(basis.solutions(x) @ coefficients) == pytest.approx(basis.spread[0], rel=0.03)
    assert np.std(basis.forcings(x) @ coefficients) == pytest.approx(basis.spread[1], rel=0.03)


@DIMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boundary_rows_are_found_in_every_dtype(dim: int, dtype: torch.dtype) -> None:
    spec = PoissonSpec(dim=dim, shots=2000, boundary=500)
    family = build_family(spec, seed=0, dtype=dtype, device=torch.device("cpu"), datasets={})
    x = family.training_batch(0, 1)["support_x"][0]
    inside = (x.abs() < 1 - 1e-6).all(dim=-1)
    assert inside.tolist() == [True] * 2000 + [False] * (len(x) - 2000)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch's own forward mode
def test_laplacian_gradient_and_hvp_by_autograd_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    loss = ResidualLoss(net, "support", 3.0, 2.0)
    family = build(dim=2)
    tasks = family.training_batch(0, 2)
    layout = Layout({name: parameter.detach() for name, parameter in net.named_parameters()})
    u = torch.randn(2, sum(layout.sizes), dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(u)

    def by_hand(row: Tensor, task: int) -> Tensor:
        """Second derivatives written out: u = w₂·tanh(W₁x + b₁) + b₂."""
        p = layout.unflatten(row)
        x, y = tasks["support_x"][task], tasks["support_y"][task]
        a = torch.tanh(x @ p["0.weight"].T + p["0.bias"])
        value = a @ p["2.weight"].T + p["2.bias"]
        bend = -2 * a * (1 - a**2)
        laplacian = (bend * p["0.weight"].square().sum(dim=1)) @ p["2.weight"].T
        inside = (x.abs() < 0.9999).all(dim=1)
        residual = ((-4 * laplacian - y) / 3)[inside]
        return 0.5 * residual.square().mean() + 0.5 * 2 * (value - y)[~inside].square().mean()

    losses = torch.stack([by_hand(u[task], task) for task in range(2)])
    (gradient,) = torch.autograd.grad(losses.sum(), u, create_graph=True)
    (product,) = torch.autograd.grad(gradient, u, v)
    traced = TracedDerivatives(loss, loss, tasks, layout.unflatten)
    for task in range(2):
        own = {name: tensor[task] for name, tensor in tasks.items()}
        torch.testing.assert_close(loss(layout.unflatten(u[task]), own), losses[task])
    torch.testing.assert_close(traced.gradient(u.detach()), gradient.detach())
    torch.testing.assert_close(traced.hvp(u.detach(), v), product)
    forward = torch.vmap(traced._hvp_forward)(u.detach(), v, tasks)
    torch.testing.assert_close(forward, product)


@DIMS
def test_draws_are_a_function_of_the_seed(dim: int) -> None:
    one, again, other = build(dim=dim), build(dim=dim), build(seed=1, dim=dim)
    again.training_batch(3, 2)
    for mine, theirs in (
        (one.training_batch(1, 3), again.training_batch(1, 3)),
        (one.evaluation_batch("test", 4), again.evaluation_batch("test", 4)),
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(one.training_batch(1, 3)["support_y"], other.training_batch(1, 3)["support_y"])
    validation, test = (one.evaluation_batch(split, 4)["query_y"] for split in ("validation", "test"))  # type: ignore[arg-type]
    assert not torch.equal(validation, test)
    assert torch.equal(one.evaluation_batch("test", 2)["query_y"], test[:2])


def test_a_fixed_number_of_training_tasks_comes_again() -> None:
    family = build(train_tasks=2, shots=1, queries=1)
    ends = {tuple(row[-2:, 0].tolist()) for i in range(6) for row in family.training_batch(i, 2)["support_y"]}
    assert len(ends) == 2


@DIMS
def test_baselines(dim: int) -> None:
    family = build(dim=dim)
    tasks, found = family.evaluation_batch("test", 4), family.baselines("test", 4)
    assert not found["zero"].any()
    around = (tasks["query_x"][0].abs() == 1).any(dim=1)
    torch.testing.assert_close(found["harmonic"][:, around], tasks["query_y"][:, around])
    assert (found["harmonic"] - tasks["query_y"])[:, ~around].abs().max() > 0.1


def test_networks_that_are_not_smooth_are_refused() -> None:
    with pytest.raises(ValidationError, match="second derivatives in its inputs, and relu's are zero") as caught:
        JobSpec.model_validate({"family": {"kind": "poisson"}, "model": {"activation": "relu"}})
    assert caught.value.errors()[0]["ctx"]["error"].field == ("model", "activation")


def test_it_learns_without_ever_seeing_a_support_solution(tmp_path: Any) -> None:
    spec = JobSpec.model_validate_json(
        json.dumps(
            {
                "family": {"kind": "poisson", "modes": 1, "shots": 8, "queries": 16, "test_tasks": 20},
                "model": {"hidden": [16]},
                "trajectory": {"length": 0.5},
                "solver": {"kind": "euler", "step": 0.05},
                "meta": {"iterations": 60, "tasks_per_batch": 8, "optimizer": {"lr": 0.01}},
                "evaluation": {"every": 60, "tasks": 20, "epochs": 10},
                "runtime": {"threads": 1, "device": "cpu"},
            }
        )
    )
    last = {name: points[-1][1] for name, points in train(spec).metrics.items()}
    never = spec.model_copy(
        update={"method": JobSpec.model_validate({"family": spec.family, "method": {"kind": "random"}}).method}
    )
    random = {name: points[-1][1] for name, points in train(never).metrics.items()}
    assert last["nrmse_flow"] < 0.8 * random["nrmse_flow"]
    assert last["nrmse_flow"] < 0.8 * last["nrmse_harmonic"]
    run = train(spec.model_copy(update={"meta": spec.meta.model_copy(update={"iterations": 1})}))
    run.save(tmp_path / "init.safetensors")
    model = amaml.load(tmp_path / "init.safetensors")
    x = np.array([[0.0], [0.25], [0.5], [0.75], [1.0]])
    y = np.array([1.0, 0.0, 0.0, 0.0, 3.0])  # u'' = 0, u(0) = 1, u(1) = 3: the straight line between
    adapted = amaml.adapt(model, torch.tensor(x), torch.tensor(y), by="finetune", epochs=1500, lr=0.01, units="raw")
    found = amaml.run.adaptation.predict(adapted, torch.tensor(x))[:, 0]
    torch.testing.assert_close(found, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]), atol=0.1, rtol=0)
