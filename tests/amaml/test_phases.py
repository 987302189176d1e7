"""Runs of several phases: each phase does what a separate run would do that starts where the phase before it ended."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import amaml
from amaml.run.evaluation import Flow, score_by_flow
from amaml.run.learned_flow import LENGTH, RATES
from amaml.run.training import Training, train
from amaml.spec import JobSpec
from tests.amaml.jobs import small

REPTILE = {"method": {"kind": "reptile"}, "share": 0.4, "optimizer": {"kind": "sgd", "lr": 0.5}}
AMAML = {"method": {"kind": "amaml"}, "share": 0.6}


def phased(*phases: dict[str, Any], **changes: dict[str, Any]) -> JobSpec:
    """Ten meta-iterations in float64."""
    meta = {"iterations": 10, "phases": list(phases), **changes.pop("meta", {})}
    return small(**{"meta": meta, "evaluation": {"epochs": 1}, "runtime": {"dtype": "float64"}, **changes})


def states(spec: JobSpec) -> tuple[Training, list[dict[str, Tensor]]]:
    """All that is trained, at the start and after every meta-iteration."""
    training = Training.start(spec)
    steps = (report for report in training if report.phase == "training" and report.metrics)
    start = {name: tensor.detach().clone() for name, tensor in training.state.trained.items()}
    return training, [start, *({n: t.detach().clone() for n, t in training.state.trained.items()} for _ in steps)]


def test_a_phase_does_what_a_run_of_its_own_would() -> None:
    _, found = states(phased(REPTILE, AMAML))
    _, alone = states(
        small(
            method=REPTILE["method"],
            meta={"iterations": 4, "optimizer": REPTILE["optimizer"]},
            evaluation={"epochs": 1},
            runtime={"dtype": "float64"},
        )
    )
    assert len(found) == 11
    for ours, own in zip(found, alone, strict=False):
        assert all(torch.equal(ours[name], own[name]) for name in own)


def test_the_next_phase_goes_on_with_an_optimizer_of_its_own_over_a_schedule_of_its_own() -> None:
    optimizer = {"kind": "adam", "lr": 0.1, "schedule": "cosine"}
    training, found = states(phased(REPTILE, {**AMAML, "optimizer": optimizer}))
    own = {name: tensor.clone().requires_grad_() for name, tensor in found[4].items()}
    adam = torch.optim.Adam(list(own.values()), lr=0.1)
    for iteration in range(4, 10):
        tasks = training.setup.family.training_batch(iteration, 3)
        gradient = amaml.meta_gradient(own, *training.setup.losses, tasks, length=0.5, solver=amaml.Euler(0.1)).grad
        for name, tensor in own.items():
            tensor.grad = gradient[name]
        adam.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * (iteration - 4) / 6))
        adam.step()
        for name, tensor in own.items():
            torch.testing.assert_close(found[iteration + 1][name], tensor.detach(), rtol=1e-9, atol=1e-12)


def test_what_a_phase_has_learned_holds_in_the_next() -> None:
    learns = {"method": {"kind": "amaml", "learn": ["rates"]}, "share": 0.5, "optimizer": {"kind": "sgd", "lr": 0.5}}
    goes_on = {"method": {"kind": "comln"}, "share": 0.5, "optimizer": {"kind": "sgd", "lr": 0.1}}
    training, found = states(phased(learns, goes_on))
    rates = {name: tensor for name, tensor in found[5].items() if name.startswith(RATES)}
    assert all(float(tensor.abs().max()) > 0 for tensor in rates.values())
    assert all(torch.equal(found[10][name], tensor) for name, tensor in rates.items())
    assert (LENGTH in found[4], LENGTH in found[5]) == (False, True)
    assert found[5][LENGTH].item() == math.log(0.5)
    theta = {name: tensor for name, tensor in found[5].items() if "/" not in name}
    answer = amaml.meta_gradient(
        theta, *training.setup.losses, training.setup.family.training_batch(5, 3),
        length=0.5, solver=amaml.Euler(0.1), rates={name.removeprefix(RATES): tensor.exp() for name, tensor in rates.items()},
    )  # fmt: skip
    for name, tensor in theta.items():
        torch.testing.assert_close(found[6][name], tensor - 0.1 * answer.grad[name], rtol=1e-9, atol=1e-12)
    step = 0.1 * 0.5 * answer.length.mean().item()
    assert found[6][LENGTH].item() == pytest.approx(math.log(0.5) - step, rel=1e-9)


def test_a_phase_may_have_a_trajectory_and_a_solver_of_its_own_but_evaluations_flow_as_the_last_one_does() -> None:
    short = {**REPTILE, "trajectory": {"length": 0.2}, "solver": {"kind": "heun", "step": 0.1}}
    run = train(phased(short, AMAML, evaluation={"every": 4, "epochs": 1}))
    gradients = [value for _, value in run.metrics["gradients"]]
    assert gradients[0] < gradients[5]
    steps = [step for step, _ in run.metrics["nrmse_flow"]]
    assert steps == [0, 4, 8, 10]
    start = run.training.setup.random_start
    tasks = run.training.setup.family.evaluation_batch("test", 4)
    scores = score_by_flow(run.training.setup.net, start, tasks, Flow(0.5, amaml.Euler(0.1, guard=False)))
    assert run.metrics["nrmse_flow"][0][1] == pytest.approx(scores.mean().item(), rel=1e-12)


def test_the_spec_says_what_holds_in_each_phase() -> None:
    spec = phased(REPTILE, {**AMAML, "clip": {"at": 2.0}}, meta={"iterations": 5, "optimizer": {"lr": 0.02}})
    assert spec.method.kind == "amaml"
    (first, reptile), (second, own) = spec.phases
    assert (first, second) == (range(2), range(2, 5))
    assert (reptile.method.kind, reptile.meta.optimizer.lr, reptile.meta.clip) == ("reptile", 0.5, None)
    assert (own.meta.optimizer.lr, own.meta.clip and own.meta.clip.at) == (0.02, 2.0)
    assert JobSpec.model_validate_json(spec.canonical()) == spec
    assert small().phases == [(range(20), small())]


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        ([REPTILE], "add up to 0.4, and must to 1"),
        ([{**REPTILE, "share": 0.01}, {**AMAML, "share": 0.99}], "share 0.01 of 10 meta-iterations is none"),
        ([{**REPTILE, "method": {"kind": "random"}}, AMAML], "random trains nothing, so it is no phase"),
        ([REPTILE, {**AMAML, "solver": {"kind": "rk4"}}], "the last phase trains for the run's own solver"),
        ([REPTILE, {**AMAML, "trajectory": {"length": 1.0}}], "the last phase trains for the run's own trajectory"),
        ([{**REPTILE, "method": {"kind": "maml"}, "solver": {"kind": "rk4"}}, AMAML], "maml is gradient descent"),
        ([{**AMAML, "share": 0.400001}, {**AMAML, "share": 0.600001}], "add up to 1.000002, and must to 1"),
        (
            [{**AMAML, "method": {"kind": "comln"}, "trajectory": {"schedule": [[2, 1.0]]}}, {**AMAML, "share": 0.4}],
            "excludes schedule and horizons",
        ),
        ([{**AMAML, "method": {"kind": "comln"}}, REPTILE], "has learned length of the flow, by which reptile doesn't"),
    ],
)
def test_invalid_phases_are_refused(phases: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        phased(*phases)


def test_a_learned_length_is_not_overruled_in_a_later_phase() -> None:
    learns = {"method": {"kind": "comln"}, "share": 0.4, "trajectory": {"length": 1.0}}
    with pytest.raises(ValidationError, match="excludes schedule and horizons"):
        phased(learns, AMAML, trajectory={"length": 0.5, "horizons": [{"at": 0.3}, {"at": 0.5}]})


def test_the_guard_is_decided_for_each_phase() -> None:
    """It is off in the last phase, whose adjoint controls the error of λ, and on in the one before it, with a discrete
    adjoint."""
    discrete = {"method": {"kind": "amaml", "adjoint": {"kind": "discrete"}}, "share": 0.4}
    spec = phased(discrete, AMAML, solver={"kind": "dopri5", "step": None})
    assert [own.solver.guard for _, own in spec.phases] == [True, False]
    assert spec.solver.guard is False
    again = JobSpec.model_validate_json(spec.canonical())
    assert [own.solver.guard for _, own in again.phases] == [True, False]


def test_defaults_apply_in_a_phase_too() -> None:
    spec = JobSpec.model_validate(
        {"family": {"kind": "sinusoid"}, "meta": {"phases": [{"method": {"kind": "maml"}, "share": 1.0}]}}
    )
    assert spec.solver.kind == "euler"
    steps = {"method": {"kind": "maml1"}, "share": 0.4, "solver": {"step": 0.2}}
    spec = phased(steps, {"method": {}, "share": 0.6})
    assert [own.solver.step for _, own in spec.phases] == [0.2, 0.1]
    assert spec.method.kind == "amaml"
    assert phased(AMAML, {**REPTILE}, runtime={"certify_every": 2}).runtime.certify_every == 2
    for broken in ({"share": 1.0}, 3):
        with pytest.raises(ValidationError) as error:
            phased(broken)  # type: ignore[arg-type]
        assert {one["loc"][:2] for one in error.value.errors()} == {("meta", "phases")}


def test_a_method_beside_the_phases_is_the_last_ones() -> None:
    with pytest.raises(ValidationError, match="method is that of the last phase"):
        phased(REPTILE, AMAML, method={"kind": "maml"})
    assert phased(REPTILE, AMAML, method={"kind": "amaml"}) == phased(REPTILE, AMAML)
