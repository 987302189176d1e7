"""Learned quantities of the flow: their gradients by finite differences, resumes, files, adaptation, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import amaml
from amaml.registry import build_family, build_model
from amaml.run.evaluation import FineTuning, Flow, adapted_by_flow, fine_tuned, score_by_flow
from amaml.run.initialization import read
from amaml.run.learned_flow import LENGTH, PROXIMAL, RATES, LearnedFlow
from amaml.run.learned_model import LearnedModel
from amaml.run.training import Diverged, Training, train
from tests.amaml.jobs import bits, sha256, small

ALL = {"kind": "amaml", "proximal": 0.5, "learn": ["length", "rates", "proximal"]}
DOPRI5 = {"kind": "dopri5", "step": None, "rtol": 1e-10, "atol": 1e-10}
EULER = {"kind": "euler", "step": 0.1}
MIDPOINT = {"kind": "midpoint", "step": 0.1}


@pytest.mark.parametrize("in_query", [False, True])
@pytest.mark.parametrize(
    ("solver", "own"),
    [
        (DOPRI5, amaml.Dopri5(1e-10)),
        (EULER, amaml.Euler(0.1)),
        (MIDPOINT, amaml.TorchDiffEq("midpoint", step=0.1)),
    ],
)
def test_a_step_goes_down_the_objectives_own_gradient(solver: dict[str, Any], own: Any, in_query: bool) -> None:
    """With plain gradient descent of rate 1, the logarithms move by minus the derivative of the mean query loss."""
    spec = small(
        method={**ALL, "proximal_in_query": in_query},
        solver=solver,
        meta={"iterations": 1, "optimizer": {"kind": "sgd", "lr": 1.0}},
        runtime={"dtype": "float64"},
        evaluation={"epochs": 1},
    )
    found = train(spec).learned.logarithms
    began = LearnedFlow({}).joined(spec, dict(_net(spec).named_parameters())).logarithms
    assert math.exp(began[LENGTH]) == pytest.approx(0.5)
    assert math.exp(began[PROXIMAL]) == pytest.approx(0.5)

    def objective(logarithms: dict[str, Tensor]) -> float:
        flow = LearnedFlow(logarithms)
        assert flow.length is not None
        assert flow.proximal is not None
        net = _net(spec)
        theta = {name: parameter.detach() for name, parameter in net.named_parameters()}
        answer = amaml.meta_gradient(
            theta, *amaml.regression_losses(net), _family(spec).training_batch(0, 3),
            length=flow.length, proximal=flow.proximal, rates=flow.rates, solver=own, proximal_in_query=in_query,
        )  # fmt: skip
        return answer.loss.mean().item()

    generator = torch.Generator().manual_seed(7)
    for kind in (LENGTH, PROXIMAL, RATES):
        along = {
            name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if kind == RATES
            else torch.ones(())
            for name, tensor in began.items()
            if name.startswith(kind)
        }
        derivative = sum(float(((began[name] - found[name]) * way).sum()) for name, way in along.items())
        assert derivative == pytest.approx(_central(objective, began, along), rel=1e-5)
        assert abs(derivative) > 1e-6


def _central(objective: Callable[[dict[str, Tensor]], float], at: dict[str, Tensor], along: dict[str, Tensor]) -> float:
    h = 1e-4

    def moved(by: float) -> float:
        return objective({**at, **{name: at[name] + by * way for name, way in along.items()}})

    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def _family(spec: amaml.JobSpec) -> Any:
    return build_family(spec.family, seed=0, dtype=torch.float64, device=torch.device("cpu"), datasets={})


def _net(spec: amaml.JobSpec) -> torch.nn.Module:
    return build_model(spec.model, in_features=1, out_features=1, seed=0).double()


def test_comln_learns_the_length_that_training_wants() -> None:
    """The trajectory is too short for tasks that all differ: a longer one lowers the loss, so the length grows."""
    run = train(
        small(
            method={"kind": "comln"},
            trajectory={"length": 0.1},
            solver={"kind": "dopri5", "step": None, "rtol": 1e-5, "atol": 1e-5},
            meta={"iterations": 30, "optimizer": {"lr": 0.05}},
            evaluation={"every": 1000, "epochs": 1},
        )
    )
    lengths = [length for _, length in run.metrics["learned_length"]]
    assert lengths[-1] > 1.3 * lengths[0]
    assert lengths[-1] == run.learned.length
    assert "learned_proximal" not in run.metrics
    assert "learned_rates" not in run.metrics


@pytest.mark.parametrize("method", [{"kind": "comln"}, ALL], ids=["comln", "all"])
@pytest.mark.parametrize("select", ["last", "validation"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, method: dict[str, Any], select: str) -> None:
    spec = small(
        method=method,
        meta={"iterations": 6},
        evaluation={"every": 2, "epochs": 2, "select": select},
        solver={"guard": False},
    )
    whole = Training.start(spec)
    undisturbed = list(whole)
    whole.save_initialization(tmp_path / "whole")
    first, before = Training.start(spec), []
    for report in first:
        before.append(report)
        if report.iteration == 3:
            break
    first.save_checkpoint(tmp_path / "checkpoint")
    second = Training.resume(spec, tmp_path / "checkpoint")
    assert bits(before) + bits(list(second)) == bits(undisturbed)
    second.save_initialization(tmp_path / "resumed")
    assert sha256(tmp_path / "whole") == sha256(tmp_path / "resumed")


def test_it_is_in_the_file_and_used_by_evaluation_and_adaptation(tmp_path: Path) -> None:
    spec = small(
        method=ALL,
        meta={"iterations": 5, "optimizer": {"lr": 0.1}},
        runtime={"dtype": "float64"},
        evaluation={"epochs": 1},
    )
    run = train(spec)
    assert run.learned.rates is not None
    assert (run.learned.length, run.learned.proximal) != (0.5, 0.5)
    last = {name: points[-1][1] for name, points in run.metrics.items()}
    rates = torch.cat([tensor.flatten() for tensor in run.learned.rates.values()])
    assert last["learned_length"] == run.learned.length
    assert last["learned_proximal"] == run.learned.proximal
    assert last["learned_rates"] == pytest.approx(rates.mean().item())
    assert float((rates - 1).abs().max()) > 0.1

    run.save(tmp_path / "init")
    tensors, _ = read(tmp_path / "init")
    assert set(tensors) == {*run.initialization, *run.learned.logarithms}
    model = amaml.load(tmp_path / "init")
    loaded = LearnedModel.of(model)
    assert loaded is not None
    assert (loaded.learned.length, loaded.learned.proximal) == (run.learned.length, run.learned.proximal)

    flow = Flow(run.learned.length, amaml.Euler(0.1, guard=False), run.learned.proximal, run.learned.rates)
    scores = score_by_flow(model, run.initialization, _family(spec).evaluation_batch("test", 4), flow)
    assert last["nrmse_flow"] == pytest.approx(scores.mean().item(), rel=1e-12)

    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    tasks = {"support_x": x[None], "support_y": x[None].sin(), "query_x": x[None], "query_y": x[None].sin()}
    expected = adapted_by_flow(model, run.initialization, tasks, flow)
    for name, parameter in amaml.adapt(model, x, x.sin()).named_parameters():
        torch.testing.assert_close(parameter, expected[name][0], rtol=1e-12, atol=1e-13)
    longer = amaml.adapt(model, x, x.sin(), length=3.0)
    assert not torch.equal(next(longer.parameters()), expected["0.weight"][0])

    plain, by_rates = (
        amaml.adapt(model, x, x.sin(), by="finetune", epochs=7, lr=0.01, learned_rates=asked) for asked in (None, True)
    )
    *_, (_, tuned) = fine_tuned(model, run.initialization, tasks, FineTuning(7, 0.01, run.learned.rates))
    for name, parameter in by_rates.named_parameters():
        torch.testing.assert_close(parameter, tuned[name][0], rtol=1e-12, atol=1e-13)
    assert not torch.equal(next(plain.parameters()), next(by_rates.parameters()))


def test_an_evaluation_fine_tunes_by_the_rates_if_asked() -> None:
    how = {"method": {"learn": ["rates"]}, "meta": {"iterations": 3, "optimizer": {"lr": 0.2}}}
    plain, by_rates = (train(small(**how, evaluation={"learned_rates": asked})).metrics for asked in (False, True))
    for name, differs in [("flow", False), ("random", False), ("tuned", True)]:
        assert (plain[f"nrmse_{name}"][-1] != by_rates[f"nrmse_{name}"][-1]) == differs
    assert plain["nrmse_tuned"][0] == by_rates["nrmse_tuned"][0]  # at the start every rate is 1


def test_a_run_from_its_file_starts_at_its_theta_and_the_specs_own_flow(tmp_path: Path) -> None:
    first = train(small(method=ALL, meta={"iterations": 2}, evaluation={"epochs": 1}))
    first.save(tmp_path / "init")
    job = "0198b2a0-0000-7000-8000-000000000002"
    training = Training.start(small(method=ALL, meta={"init_from": {"job": job}}), initialization=tmp_path / "init")
    assert all(torch.equal(training.initialization[name], own) for name, own in first.initialization.items())
    assert training.learned.length == pytest.approx(0.5)


def test_a_length_above_the_bound_ends_the_run() -> None:
    with pytest.raises(Diverged, match="the learned trajectory length is"):
        train(
            small(
                method={"kind": "comln"},
                trajectory={"length": 0.1},
                meta={"optimizer": {"kind": "adam", "lr": 20.0}},
                solver={"guard": False},
            )
        )


def refused(method: dict[str, Any], **parts: Any) -> tuple[str, ...]:
    body = {"family": {"kind": "sinusoid"}, "method": method, **parts}
    with pytest.raises(ValidationError) as error:
        amaml.JobSpec.model_validate_json(json.dumps(body))
    found = error.value.errors()[0]
    return (*(str(part) for part in found["loc"]), *found["ctx"]["error"].field)


def test_contradictory_options_are_refused() -> None:
    horizons, schedule = {"horizons": [{"at": 1.0}]}, {"schedule": [[1, 1.0]]}
    assert refused({"kind": "comln"}, trajectory=schedule) == ("trajectory", "schedule")
    assert refused({"learn": ["length"]}, trajectory=horizons) == ("trajectory", "horizons")
    assert refused({"learn": ["proximal"]}) == ("method", "amaml", "proximal")
    assert refused({"learn": ["rates", "rates"]}) == ("method", "amaml", "learn")
    assert small(method={"learn": ["rates"]}, trajectory=horizons).trajectory.horizons
