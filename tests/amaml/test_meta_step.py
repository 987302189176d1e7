"""The meta-step against torch's own optimizers and loops over tasks; the moving average, tasks left out, and the end of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import amaml
from amaml.flow.result import Failure, Result, SolveError
from amaml.run.evaluation import Flow, score_by_flow
from amaml.run.learned_flow import RATES
from amaml.run.outcome import Diverged
from amaml.run.training import Training, train
from amaml.spec import JobSpec
from tests.amaml.jobs import bits, small

Params = dict[str, Tensor]


def stepped(spec: JobSpec) -> tuple[list[Params], list[amaml.MetaGradient]]:
    """θ before and after every meta-iteration, and the exact meta-gradients there."""
    training = Training.start(spec)
    states, gradients = [training.initialization], []
    steps = (report for report in training if report.phase == "training" and report.metrics)
    states += [training.initialization for _ in steps]
    for iteration, theta in enumerate(states[:-1]):
        tasks = training.setup.family.training_batch(iteration, spec.meta.tasks_per_batch)
        gradients.append(amaml.meta_gradient(theta, *training.setup.losses, tasks, length=0.5, solver=amaml.Euler(0.1)))
    return states, gradients


def norms(gradient: amaml.MetaGradient) -> list[float]:
    return [
        sum(float(tensor[row].double().square().sum()) for tensor in gradient.per_task.values()) ** 0.5
        for row in range(len(gradient.loss))
    ]


def sgd(**meta: Any) -> JobSpec:
    """Plain gradient steps, which show how the gradient was changed."""
    return small(
        meta={"iterations": 6, "optimizer": {"kind": "sgd", "lr": 0.3}, **meta},
        evaluation={"epochs": 1},
        runtime={"dtype": "float64"},
    )


def check_steps(spec: JobSpec, bound: Callable[[list[float], list[float]], float]) -> None:
    """Asserts that each task's gradient was clipped at `bound` of the norms so far and those of these tasks."""
    states, gradients = stepped(spec)
    seen: list[float] = []
    for before, after, gradient in zip(states, states[1:], gradients, strict=False):
        own = norms(gradient)
        seen += own
        factors = torch.tensor([min(1.0, bound(seen, own) / norm) for norm in own], dtype=torch.float64)
        for name, tensor in gradient.per_task.items():
            mean = (tensor * factors.reshape(-1, *[1] * (tensor.ndim - 1))).mean(dim=0)
            torch.testing.assert_close(after[name], before[name] - 0.3 * mean, rtol=1e-9, atol=1e-12)


def test_without_a_clip_the_mean_gradient_is_applied() -> None:
    check_steps(sgd(), lambda _seen, own: max(own))


def test_a_clip_at_a_number_a_task() -> None:
    check_steps(sgd(clip={"at": 0.1, "factor": 2.0}), lambda _seen, _own: 0.2)


@pytest.mark.parametrize("window", [4, 100])
def test_a_clip_at_the_median_a_task(window: int) -> None:
    spec = sgd(clip={"factor": 0.7, "window": window})
    check_steps(spec, lambda seen, _own: 0.7 * statistics.median(seen[-window:]))
    clipped = [share for _, share in train(spec).metrics["clipped"]]
    assert len(clipped) == 6
    assert 0 < sum(clipped) < 6


def test_a_clip_of_the_mean_gradient() -> None:
    spec = sgd(clip={"per": "batch", "at": 0.05})
    states, gradients = stepped(spec)
    for before, after, gradient in zip(states, states[1:], gradients, strict=False):
        norm = sum(float(tensor.square().sum()) for tensor in gradient.grad.values()) ** 0.5
        assert norm > 0.05
        for name, tensor in gradient.grad.items():
            torch.testing.assert_close(after[name], before[name] - 0.3 * 0.05 / norm * tensor)


def test_one_task_of_huge_gradient_moves_no_more_than_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's second moment would remember it for a thousand meta-iterations."""

    def moved(spec: JobSpec) -> float:
        training = Training.start(spec)
        family, start = training.setup.family, training.initialization
        draw = family.training_batch

        def spoiled(iteration: int, size: int) -> dict[str, Tensor]:
            tasks = draw(iteration, size)
            tasks["query_y"][0] *= 1e5 if iteration == 3 else 1.0
            return tasks

        monkeypatch.setattr(family, "training_batch", spoiled)
        list(training)
        return max(float((training.initialization[name] - tensor).abs().max()) for name, tensor in start.items())

    meta = {"iterations": 100, "optimizer": {"lr": 0.01}}
    assert moved(small(meta={**meta, "clip": {}})) > 4 * moved(small(meta=meta))


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ({"kind": "adam", "betas": [0.5, 0.9]}, lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9))),
        ({"kind": "adam", "weight_decay": 0.2}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2)),
        ({"kind": "adamw", "weight_decay": 0.2}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
        ({"kind": "sgd", "momentum": 0.8}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
        ({"kind": "sgd", "weight_decay": 0.2}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2)),
    ],
)
def test_optimizers_are_torchs(optimizer: dict[str, Any], make: Callable[[Any], torch.optim.Optimizer]) -> None:
    states, gradients = stepped(sgd(optimizer={"lr": 0.1, **optimizer}))
    own = {name: tensor.clone().requires_grad_() for name, tensor in states[0].items()}
    other = make(list(own.values()))
    for after, gradient in zip(states[1:], gradients, strict=True):
        for name, tensor in own.items():
            tensor.grad = gradient.grad[name]
        other.step()
        for name, tensor in own.items():
            torch.testing.assert_close(after[name], tensor.detach(), rtol=1e-9, atol=1e-12)


def test_what_is_learned_beside_theta_has_a_rate_of_its_own_and_no_decay() -> None:
    how: dict[str, Any] = {"method": {"learn": ["rates"]}, "evaluation": {"epochs": 1}}
    optimizer = {"kind": "sgd", "lr": 0.1, "weight_decay": 0.5}
    own = train(small(meta={"iterations": 1, "optimizer": optimizer, "learn_lr": 0.4}, **how))
    same = train(small(meta={"iterations": 1, "optimizer": optimizer}, **how))
    for name, tensor in own.learned.logarithms.items():
        assert float(tensor.abs().max()) > 0
        torch.testing.assert_close(tensor, 4 * same.learned.logarithms[name])
        theta = name.removeprefix(RATES)
        assert torch.equal(own.initialization[theta], same.initialization[theta])
    training = Training.start(small(meta={"iterations": 3, "optimizer": optimizer, "learn_lr": 1e-30}, **how))
    training.state.learned.logarithms[RATES + "0.bias"].fill_(0.5)
    list(training)
    assert bool((training.learned.logarithms[RATES + "0.bias"] == 0.5).all())


def test_a_moving_average_is_what_is_evaluated_and_kept() -> None:
    spec = small(meta={"iterations": 12, "average": 0.8}, evaluation={"every": 12, "epochs": 1})
    training = Training.start(spec)
    average: Params = {}
    for report in training:
        if report.phase == "training" and report.metrics:
            decay = min(0.8, (1 + report.iteration) / (10 + report.iteration))
            for name, tensor in training.state.theta.items():
                before = average.get(name, training.setup.random_start[name].detach())
                average[name] = decay * before + (1 - decay) * tensor.detach()
    scores = report.metrics["nrmse_flow"]
    for name, tensor in training.initialization.items():
        torch.testing.assert_close(tensor, average[name])
        assert not torch.allclose(tensor, training.state.theta[name])
    flow = Flow(0.5, amaml.Euler(0.1, guard=False))
    tasks = training.setup.family.evaluation_batch("test", 4)
    own = score_by_flow(training.setup.net, training.initialization, tasks, flow)
    assert scores == pytest.approx(own.mean().item(), rel=1e-5)


# When a run ends


def far_too_fast(**meta: Any) -> JobSpec:
    return small(
        meta={"iterations": 40, "optimizer": {"kind": "sgd", "lr": 4.0}, **meta},
        evaluation={"every": 5, "epochs": 1, "select": "validation"},
        solver={"guard": False},
    )


def test_the_start_is_evaluated_and_may_be_the_best() -> None:
    run = train(far_too_fast(iterations=5))
    assert [step for step, _ in run.metrics["nrmse_validation"]] == [0, 5]
    (_, tuned), (_, random) = run.metrics["nrmse_tuned"][0], run.metrics["nrmse_random"][0]
    assert tuned == random
    (_, first), (_, last) = run.metrics["nrmse_validation"]
    assert (run.training.state.chosen_at == 0) == (first <= last)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    spec = far_too_fast(patience=2)
    training, reports = Training.start(spec), []
    for report in training:
        reports.append(report)
        training.save_checkpoint(tmp_path / f"{len(reports)}")
    scores = [report.metrics["nrmse_validation"] for report in reports if "nrmse_validation" in report.metrics]
    best = scores.index(min(scores))
    assert training.iteration == 5 * (best + 2) < 40
    assert training.early_end is not None
    assert training.early_end[0] == "patience_spent"
    assert (
        f"no better in 2 evaluations in a row (meta.patience) than the {min(scores):.4g} after" in training.early_end[1]
    )
    assert reports[-1].evaluation is not None
    assert reports[-1].evaluation.along_flow is not None
    for number in (3, len(reports) // 2, len(reports) - 1, len(reports)):
        resumed = Training.resume(spec, tmp_path / str(number))
        after = list(resumed)
        assert resumed.iteration == training.iteration
        assert bits(after) == bits(reports)[len(bits(reports)) - len(bits(after)) :]
        for name, tensor in training.initialization.items():
            assert torch.equal(resumed.initialization[name], tensor)


def test_a_target_ends_a_run_that_is_good_enough() -> None:
    how: dict[str, Any] = {"evaluation": {"every": 2, "epochs": 1, "select": "validation"}}
    scores = train(small(**how)).metrics["nrmse_validation"]
    step, target = next(point for point in scores if point[1] < scores[0][1])
    run = train(small(meta={"target": target}, **how))
    assert run.metrics["nrmse_validation"][-1] == (step, target)
    assert run.training.iteration == step < 20
    assert run.training.early_end is not None
    assert run.training.early_end[0] == "target_reached"
    assert train(small()).training.early_end is None


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"meta": {"patience": 3}}, "set evaluation.select to validation, or meta.patience to null"),
        ({"meta": {"target": 0.3}}, "set evaluation.select to validation, or meta.target to null"),
        ({"method": {"kind": "random"}, "meta": {"patience": 3}}, "random trains nothing that patience could end"),
        ({"meta": {"learn_lr": 0.1}}, "set meta.learn_lr to null, or name length, rates or proximal in method.learn"),
        ({"meta": {"optimizer": {"momentum": 0.9}}}, "momentum is for sgd, not adam"),
        ({"meta": {"optimizer": {"kind": "sgd", "betas": [0.9, 0.99]}}}, "betas is for adam and adamw, not sgd"),
    ],
)
def test_what_has_no_meaning_is_refused(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        small(**parts)


# Tasks that can't be solved


def spoil(training: Training, rows: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a NaN into the tasks in these rows of a batch; `rows` maps a meta-iteration to rows."""
    family = training.setup.family
    draw = family.training_batch

    def spoiled(iteration: int, size: int) -> dict[str, Tensor]:
        tasks = draw(iteration, size)
        tasks["support_y"][rows.get(iteration, [])] = float("nan")
        return tasks

    monkeypatch.setattr(family, "training_batch", spoiled)


@pytest.mark.parametrize(
    "solver", [{"kind": "euler", "step": 0.1}, {"kind": "dopri5", "step": None}], ids=lambda s: s["kind"]
)
def test_a_task_that_is_not_finite_is_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, solver: dict[str, Any]
) -> None:
    training = Training.start(small(solver=solver))
    spoil(training, {2: [1]}, monkeypatch)
    for report in training:
        if report.iteration == 2 and report.phase == "training":
            before = training.initialization
        if report.iteration == 3:
            break
    assert report.metrics["left_out"] == 1.0
    tasks = {name: tensor[[0, 2]] for name, tensor in training.setup.family.training_batch(2, 3).items()}
    alone = amaml.meta_gradient(
        before, *training.setup.losses, tasks, length=0.5, solver=training.setup.phases[0].solver
    )
    norm = sum(float(tensor.double().square().sum()) for tensor in alone.grad.values()) ** 0.5
    assert report.metrics["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    assert all("left_out" not in report.metrics for report in training)


def test_a_task_is_named_by_its_place_in_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solvers report the tasks that failed first; the others are then solved again without them."""
    training = Training.start(small())

    def fails(*_: Any) -> None:
        raise SolveError([Failure(Result.NON_FINITE, 0, 0.25)])

    monkeypatch.setattr(training, "_estimate", fails)
    with pytest.raises(Diverged, match="task 1 at t="):
        list(training)


def test_too_many_left_out_tasks_fail_the_run_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.start(small())
    spoil(training, {2: [1], 5: [2]}, monkeypatch)
    with pytest.raises(Diverged, match=r"after 5 of 20 meta-iterations \(task 2 at t="):
        list(training)
    training = Training.start(small())
    spoil(training, {4: [0, 1, 2]}, monkeypatch)
    with pytest.raises(Diverged, match=r"after 4 of 20 meta-iterations \(task 0 at t=.*3 tasks failed"):
        list(training)
