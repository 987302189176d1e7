"""Every method through the training loop: it learns, resumes to the bit, and is what its estimator says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import amaml
from amaml.methods.fomaml.gradient import fomaml
from amaml.methods.imaml.gradient import imaml
from amaml.methods.reptile.gradient import reptile
from amaml.registry import build_family, build_model
from amaml.run.evaluation import Flow, score_by_flow
from amaml.run.learned_model import LearnedModel
from amaml.run.training import Training, train
from tests.amaml.jobs import METHODS, name_of, small


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_it_learns(method: dict[str, Any]) -> None:
    run = train(
        small(
            method=method,
            family={"shots": 20, "queries": 20, "train_tasks": 2},
            model={"hidden": [16]},
            solver={"step": 0.05},
            meta={"iterations": 100, "tasks_per_batch": 2, "optimizer": {"lr": 0.02}},
            evaluation={"every": 1000, "epochs": 1},
        )
    )
    losses = [loss for _, loss in run.metrics["meta_loss"]]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert {"gradient_norm", "gradients", "hvps", "seconds"} <= set(run.metrics)


EULER = amaml.Euler(step=0.1)


@pytest.mark.parametrize(
    ("method", "estimate"),
    [
        ({"kind": "maml"}, lambda *job: amaml.meta_gradient(*job, length=0.5, solver=EULER)),
        ({"kind": "maml", "steps": 3}, lambda *job: amaml.meta_gradient(*job, length=0.3, solver=EULER)),
        ({"kind": "maml1"}, lambda *job: amaml.meta_gradient(*job, length=0.1, solver=EULER)),
        ({"kind": "fomaml"}, lambda *job: fomaml(*job, length=0.5, solver=EULER)),
        ({"kind": "reptile"}, lambda *job: reptile(*job, length=0.5, solver=EULER)),
        (
            {"kind": "imaml", "proximal": 2.0, "cg_steps": 3, "damping": 0.5},
            lambda *job: imaml(*job, length=0.5, solver=EULER, proximal=2.0, cg_steps=3, damping=0.5),
        ),
    ],
)
def test_a_step_is_the_estimators(method: dict[str, Any], estimate: Callable[..., Any]) -> None:
    spec = small(
        method=method,
        meta={"iterations": 1, "optimizer": {"kind": "sgd", "lr": 0.3}},
        evaluation={"epochs": 1},
        runtime={"dtype": "float64"},
    )
    run = train(spec)
    family = build_family(spec.family, seed=0, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    net = build_model(spec.model, in_features=1, out_features=1, seed=0).double()
    theta = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tasks = family.training_batch(0, 3)
    answer = estimate(theta, *amaml.regression_losses(net), tasks)
    for name, tensor in run.initialization.items():
        torch.testing.assert_close(tensor, theta[name] - 0.3 * answer.grad[name], rtol=1e-12, atol=1e-14)
    assert run.metrics["hvps"] == [(1, answer.stats.hvps.double().mean().item())]
    # Whatever it takes in training, a method is judged by the flow to the trajectory's length, at its own proximal strength.
    flow = Flow(0.5, amaml.Euler(0.1, guard=False), method.get("proximal", 0.0))
    scores = score_by_flow(net, run.initialization, family.evaluation_batch("test", 4), flow)
    assert run.metrics["nrmse_flow"][-1][1] == pytest.approx(scores.mean().item(), rel=1e-12)


def test_random_trains_nothing_and_is_evaluated(tmp_path: Path) -> None:
    spec = small(method={"kind": "random"}, meta={"iterations": 1000})
    training = Training.start(spec)
    reports = list(training)
    assert training.iteration == training.iterations == 1000
    assert {report.phase for report in reports} == {"evaluating"}
    metrics = reports[-1].metrics
    assert metrics["nrmse_tuned"] == metrics["nrmse_random"]
    assert math.isfinite(metrics["nrmse_flow"])
    start = build_model(spec.model, in_features=1, out_features=1, seed=0)
    assert all(torch.equal(training.initialization[name], own) for name, own in start.named_parameters())
    training.save_initialization(tmp_path / "init")
    assert LearnedModel.read(tmp_path / "init").spec == spec
    training.save_checkpoint(tmp_path / "checkpoint")
    assert list(Training.resume(spec, tmp_path / "checkpoint")) == []


def test_an_initialization_adapts_at_its_methods_proximal_strength(tmp_path: Path) -> None:
    train(small(method={"kind": "imaml", "proximal": 2.0}, meta={"iterations": 1})).save(tmp_path / "init")
    model = amaml.load(tmp_path / "init")
    x = torch.linspace(-1, 1, 5)[:, None]
    tasks = {"support_x": x[None], "support_y": x[None].sin(), "query_x": x[None], "query_y": x[None].sin()}
    theta = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = imaml(theta, *amaml.regression_losses(model), tasks, length=0.5, solver=EULER, proximal=2.0).adapted
    for name, parameter in amaml.adapt(model, x, x.sin()).named_parameters():
        torch.testing.assert_close(parameter, expected[name][0], rtol=1e-5, atol=1e-6)


def test_certificates_of_maml_are_of_its_own_steps() -> None:
    run = train(
        small(method={"kind": "maml"}, meta={"iterations": 1}, runtime={"certify_every": 1}, evaluation={"epochs": 1})
    )
    assert run.metrics["certificate_error"][0][1] < 1e-4
