"""The training loop: one step by hand, resumes to the bit, the ends of a run, schedules, selection."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch

import amaml
from amaml.flow.result import SolveError
from amaml.methods import certificate
from amaml.registry import build_family, build_model, build_solver
from amaml.run.baselines import LENGTHS
from amaml.run.checkpoint import CheckpointError
from amaml.run.initialization import InitializationError, read, write
from amaml.run.learned_model import LearnedModel
from amaml.run.schedules import INVERSE_SQRT_AFTER, length_at, rate_factor
from amaml.run.training import CertificateFailed, Diverged, TimedOut, Training, train
from amaml.spec import Horizon, JobSpec, MLPSpec, OptimizerSpec, SolverSpec, TrajectorySpec
from tests.amaml.jobs import bits, sha256, small

OTHER_JOB = UUID("0198b2a0-0000-7000-8000-000000000002")


def test_one_step_by_hand() -> None:
    spec = small(
        meta={"iterations": 1, "optimizer": {"kind": "sgd", "lr": 0.3}},
        runtime={"dtype": "float64"},
        method={"proximal": 0.5},
    )
    run = train(spec)
    family = build_family(spec.family, seed=0, dtype=torch.float64, device=torch.device("cpu"), datasets={})
    net = build_model(spec.model, in_features=1, out_features=1, seed=0).double()
    theta = {name: parameter.detach() for name, parameter in net.named_parameters()}
    g = amaml.meta_gradient(
        theta,
        *amaml.regression_losses(net),
        family.training_batch(0, 3),
        length=0.5,
        solver=amaml.Euler(step=0.1),
        proximal=0.5,
    )
    for name, tensor in run.initialization.items():
        torch.testing.assert_close(tensor, theta[name] - 0.3 * g.grad[name], rtol=1e-12, atol=1e-14)
    metrics = {name: points[0] for name, points in run.metrics.items()}
    assert metrics["meta_loss"] == (1, pytest.approx(g.loss.mean().item(), rel=1e-12))
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in g.grad.values()))
    assert metrics["gradient_norm"] == (1, pytest.approx(norm, rel=1e-12))
    assert metrics["gradients"] == (1, g.stats.gradients.double().mean().item())
    assert metrics["hvps"] == (1, g.stats.hvps.double().mean().item())
    assert metrics["lambda_max"] == (1, pytest.approx(g.stats.lambda_max.max().item()))
    assert metrics["seconds"][1] > 0


def test_a_run_computes_deterministically_and_in_full_precision() -> None:
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    Training.start(small())
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_training_improves_the_scores() -> None:
    spec = small(
        family={"shots": 10, "queries": 10, "test_tasks": 20},
        model={"hidden": [16, 16]},
        trajectory={"length": 1.0},
        solver={"kind": "dopri5", "step": None, "rtol": 1e-4, "atol": 1e-4},
        meta={"iterations": 150, "tasks_per_batch": 8, "optimizer": {"lr": 0.01}},
        evaluation={"every": 1000, "tasks": 20, "epochs": 50},
    )
    run = train(spec)
    (_, flow), (_, tuned), (_, random) = (run.metrics[f"nrmse_{how}"][-1] for how in ("flow", "tuned", "random"))
    assert flow < random - 0.1
    assert tuned < random - 0.1
    assert run.metrics["meta_loss"][-1][0] == 150


def test_a_run_stopped_within_an_evaluation_evaluates_again(tmp_path: Path) -> None:
    spec = small()
    undisturbed = bits(list(Training.start(spec)))
    first = Training.start(spec)
    for report in first:
        if report.phase == "evaluating" and report.iteration == 10:
            break
    first.save_checkpoint(tmp_path / "checkpoint")
    after = bits(list(Training.resume(spec, tmp_path / "checkpoint")))
    assert after == [point for point in undisturbed if point[0] > 10 or (point[0] == 10 and "nrmse_flow" in point[1])]


def test_a_finished_run_resumes_to_its_end(tmp_path: Path) -> None:
    whole = Training.start(small())
    list(whole)
    whole.save_checkpoint(tmp_path / "checkpoint")
    again = Training.resume(small(), tmp_path / "checkpoint")
    assert list(again) == []
    again.save_initialization(tmp_path / "again")
    whole.save_initialization(tmp_path / "whole")
    assert sha256(tmp_path / "again") == sha256(tmp_path / "whole")


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_frozen_parameters_neither_flow_nor_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, average: float | None
) -> None:
    monkeypatch.setattr(MLPSpec, "implementation", "tests.amaml.jobs:frozen_first_layer")
    spec = small(meta={"optimizer": {"kind": optimizer}, "average": average})
    whole, first = Training.start(spec), Training.start(spec)
    random = whole.initialization
    list(whole)
    for name, tensor in whole.initialization.items():
        assert torch.equal(tensor, random[name]) == name.startswith("0.")
        assert whole.state.current[name].requires_grad != name.startswith("0.")  # so that evaluations leave them, too
    for report in first:
        if report.iteration == 7:
            break
    first.save_checkpoint(tmp_path / "checkpoint")
    second = Training.resume(spec, tmp_path / "checkpoint")
    list(second)
    for name, tensor in whole.initialization.items():
        assert torch.equal(second.initialization[name], tensor)


def test_a_run_depends_on_nothing_before_it() -> None:
    one = train(small())
    torch.manual_seed(5)
    train(small(runtime={"seed": 1}, meta={"iterations": 2}))
    other = train(small())
    assert all(torch.equal(one.initialization[name], other.initialization[name]) for name in one.initialization)
    assert one.metrics["nrmse_tuned"] == other.metrics["nrmse_tuned"]


def test_reports(tmp_path: Path) -> None:
    training = Training.start(small())
    assert training.parameters == 8 + 8 + 8 + 1
    reports = list(training)
    assert training.iteration == training.iterations == 20
    steps = [report for report in reports if report.phase == "training"]
    assert [report.iteration for report in steps] == list(range(1, 21))
    assert all(set(step.metrics) >= {"meta_loss", "gradient_norm", "gradients", "hvps", "seconds"} for step in steps)
    quiet = [report for report in reports if report.phase == "evaluating" and not report.metrics]
    # Each evaluation reports after the flow and at three records; the first one also for the baselines, the last one also along
    # the flow up to T and beyond.
    assert len(quiet) == 3 * (1 + 3) + (len(LENGTHS) + 1) + 2
    evaluated = [report for report in reports if "nrmse_flow" in report.metrics]
    assert [report.iteration for report in evaluated] == [0, 10, 20]
    assert {report.metrics["nrmse_random"] for report in evaluated} == {evaluated[0].metrics["nrmse_tuned"]}
    expected = {"nrmse_tuned", "nrmse_tuned_best", "nrmse_flow_error", "nrmse_zero", "nrmse_population_mean",
                "nrmse_kernel_ridge"}  # fmt: skip
    assert set(evaluated[0].metrics) >= expected
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    found = evaluated[2].evaluation
    assert found is not None
    assert found.curve.scores.shape == (3, 4)
    assert found.along_flow is not None
    assert evaluated[1].evaluation is not None
    assert evaluated[1].evaluation.along_flow is None


def test_the_start_and_the_last_iteration_are_always_evaluated_and_none_twice() -> None:
    run = train(small(meta={"iterations": 5}, evaluation={"every": 3}))
    assert [step for step, _ in run.metrics["nrmse_flow"]] == [0, 3, 5]


def test_selection_keeps_the_best_on_validation_tasks(tmp_path: Path) -> None:
    how = {"solver": {"guard": False}, "runtime": {"seed": 2}}
    optimizer = {"kind": "sgd", "lr": 2.0}
    evaluation = {"every": 1, "epochs": 1, "select": "validation"}
    run = train(small(meta={"iterations": 6, "optimizer": optimizer}, evaluation=evaluation, **how))
    scores = run.metrics["nrmse_validation"]
    best = min(scores, key=lambda point: point[1])[0]
    assert 0 < best < 6, "the rate was chosen so that training overshoots; the test needs that"
    run.save(tmp_path / "init")
    tensors, metadata = read(tmp_path / "init")
    assert metadata["iteration"] == str(best)
    shorter = train(small(meta={"iterations": best, "optimizer": optimizer}, **how))
    assert all(torch.equal(tensors[name], shorter.initialization[name]) for name in tensors)


# Files it starts from


def test_it_starts_from_another_runs_initialization_or_checkpoint(tmp_path: Path) -> None:
    first = train(small())
    first.save(tmp_path / "init")
    first.training.save_checkpoint(tmp_path / "checkpoint")
    still = small(
        meta={"iterations": 1, "optimizer": {"kind": "sgd", "lr": 1e-30}, "init_from": {"job": str(OTHER_JOB)}}
    )
    for name in ("init", "checkpoint"):
        run = train(still, initialization=tmp_path / name)
        assert all(torch.equal(run.initialization[name], first.initialization[name]) for name in run.initialization)
    # The scores of the random start are the spec's own, whatever the run starts from.
    assert run.metrics["nrmse_random"][0][1] == first.metrics["nrmse_random"][0][1]


def test_init_from_without_a_file() -> None:
    with pytest.raises(ValueError, match=r"set meta\.init_from to null"):
        Training.start(small(meta={"init_from": {"job": str(OTHER_JOB)}}))


def test_init_from_another_model(tmp_path: Path) -> None:
    train(small()).save(tmp_path / "init")
    with pytest.raises(InitializationError, match="same model"):
        Training.start(small(model={"hidden": [9]}), initialization=tmp_path / "init")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    training = Training.start(small(meta={"iterations": 1}))
    list(training)
    training.save_checkpoint(tmp_path / "checkpoint")
    training.save_initialization(tmp_path / "init")
    with pytest.raises(CheckpointError, match="another spec"):
        Training.resume(small(meta={"iterations": 1, "tasks_per_batch": 4}), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Training.resume(training.spec, tmp_path / "init")


@pytest.mark.parametrize(
    ("field", "name", "said"),
    [("versions", "torch", r"libraries \(torch 1.0 → "), ("machine", "kind", r"machine \(kind 1.0 → ")],
)
def test_a_checkpoint_of_another_machine_is_refused(tmp_path: Path, field: str, name: str, said: str) -> None:
    training = Training.start(small(meta={"iterations": 1}))
    list(training)
    training.save_checkpoint(tmp_path / "checkpoint")
    tensors, metadata = read(tmp_path / "checkpoint")
    metadata[field] = json.dumps(json.loads(metadata[field]) | {name: "1.0"})
    write(tmp_path / "checkpoint", tensors, metadata, form=metadata["format"])
    with pytest.raises(CheckpointError, match=said):
        Training.resume(training.spec, tmp_path / "checkpoint")


def test_a_resume_keeps_the_number_of_threads(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = small(runtime={"threads": None}, meta={"iterations": 1})
    training = Training.start(spec)
    training.save_checkpoint(tmp_path / "checkpoint")
    torch.set_num_threads(2)
    Training.resume(spec, tmp_path / "checkpoint")
    assert torch.get_num_threads() == 1


# What ends it


def test_divergence_says_what_to_lower() -> None:
    with pytest.raises(Diverged, match=r"diverged after \d+ of 20 .* lower meta.optimizer.lr"):
        train(
            small(
                model={"hidden": [16] * 4, "activation": "relu"},  # whose outputs aren't bounded
                meta={"optimizer": {"kind": "sgd", "lr": 100.0}},
                solver={"guard": False},
                trajectory={"length": 5.0},
            )
        )


def test_a_fine_tuning_that_diverges_is_not_hidden() -> None:
    with pytest.raises(Diverged, match=r"nrmse_random of \d of 4 tasks is not finite .* lower evaluation.lr"):
        train(
            small(
                meta={"iterations": 1},
                evaluation={"lr": 100.0, "epochs": 60},
                model={"activation": "relu", "hidden": [64] * 8},
            )
        )


def test_a_step_outside_the_stability_region_fails_the_solve() -> None:
    with pytest.raises(SolveError, match="use a step below"):
        train(small(solver={"step": 5.0}, trajectory={"length": 50.0}))


def test_time_runs_out(tmp_path: Path) -> None:
    spec = small(runtime={"max_seconds": 1e-6})
    with pytest.raises(TimedOut, match=r"max_seconds of 1e-06 was used up after 0 of 20"):
        list(Training.start(spec))


def test_time_spent_before_a_resume_counts(tmp_path: Path) -> None:
    spec = small(runtime={"max_seconds": 1000.0})
    training = Training.start(spec)
    for report in training:
        if report.iteration == 1:
            break
    training.save_checkpoint(tmp_path / "checkpoint")
    tensors, metadata = read(tmp_path / "checkpoint")
    metadata["progress"] = json.dumps(json.loads(metadata["progress"]) | {"seconds": 1001.0})
    write(tmp_path / "checkpoint", tensors, metadata, form=metadata["format"])
    with pytest.raises(TimedOut, match="after 1 of 20"):
        list(Training.resume(spec, tmp_path / "checkpoint"))


def test_a_missing_cuda_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="set it to auto or cpu"):
        Training.start(small(runtime={"device": "cuda"}))


# Schedules


def test_rates_over_a_run() -> None:
    def rate(schedule: str, iteration: int, warmup: int = 0) -> float:
        spec = OptimizerSpec.model_validate({"schedule": schedule, "warmup": warmup})
        return rate_factor(spec, iteration, 100)

    assert [rate("constant", i) for i in (0, 50, 99)] == [1.0, 1.0, 1.0]
    assert rate("inverse_sqrt", 0) == 1.0
    assert rate("inverse_sqrt", INVERSE_SQRT_AFTER) == pytest.approx(1.0 / math.sqrt(2))
    assert rate("inverse_sqrt", 99 * INVERSE_SQRT_AFTER) == pytest.approx(0.1)
    assert rate("cosine", 0) == 1.0
    assert rate("cosine", 50) == pytest.approx(0.5)
    assert 0 < rate("cosine", 99) < 1e-3
    assert [rate("constant", i, warmup=4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate("cosine", 1, warmup=4) == pytest.approx(0.5 * rate("cosine", 1))


def test_lengths() -> None:
    growing = TrajectorySpec(length=1.0, schedule=[(2, 3.0), (5, 7.0)])
    assert [length_at(growing, i) for i in range(7)] == [1.0, 1.0, 3.0, 3.0, 3.0, 7.0, 7.0]
    assert length_at(TrajectorySpec(length=4.0), 9) == 4.0
    assert length_at(TrajectorySpec(horizons=[Horizon(at=1.0), Horizon(at=2.5)]), 0) == 2.5


def test_the_trajectory_grows_with_its_schedule() -> None:
    run = train(
        small(
            trajectory={"schedule": [[2, 1.0]]},
            meta={"iterations": 3},
            solver={"guard": False},
            evaluation={"epochs": 1},
        )
    )
    assert [hvps for _, hvps in run.metrics["hvps"]] == [5.0, 5.0, 10.0]
    assert "lambda_max" not in run.metrics  # without the guard it isn't estimated


def test_horizons_share_a_solve() -> None:
    horizons = [{"at": 0.2, "weight": 1.0}, {"at": 0.5, "weight": 2.0}]
    run = train(
        small(
            trajectory={"horizons": horizons}, meta={"iterations": 1}, solver={"guard": False}, evaluation={"epochs": 1}
        )
    )
    assert run.metrics["hvps"] == [(1, 5.0)]


@pytest.mark.parametrize(
    "method",
    [
        {"adjoint": {"kind": "interpolated", "scheme": "heun"}},
        {"adjoint": {"kind": "discrete", "checkpoints": 2}},
        {"proximal": 1.0, "proximal_in_query": True},
    ],
)
def test_the_methods_options_reach_the_solver(method: dict[str, Any]) -> None:
    plain, other = train(small(meta={"iterations": 1})), train(small(meta={"iterations": 1}, method=method))
    assert other.metrics["meta_loss"][0][1] > 0
    same = torch.equal(plain.initialization["0.weight"], other.initialization["0.weight"])
    assert same == (method.get("adjoint", {}).get("kind") == "discrete")


def test_certificates_are_among_the_metrics() -> None:
    run = train(small(meta={"iterations": 4}, runtime={"certify_every": 2}, evaluation={"epochs": 1}))
    assert [step for step, _ in run.metrics["certificate_error"]] == [2, 4]
    assert all(0 < value < 1e-3 for _, value in run.metrics["certificate_error"])


def test_a_run_can_be_stopped_during_a_certificate(tmp_path: Path) -> None:
    spec = small(meta={"iterations": 3, "tasks_per_batch": 3}, runtime={"certify_every": 2}, evaluation={"epochs": 1})
    training, amid = Training.start(spec), []
    for report in training:
        if report.phase == "training" and not report.metrics:
            amid.append(report.iteration)
            training.save_checkpoint(tmp_path / str(len(amid)))
    assert amid == [1, 1, 1]  # the second meta-iteration, whose three tasks are certified, isn't done yet
    for number in (1, 2, 3):
        resumed = Training.resume(spec, tmp_path / str(number))
        certified = [report.metrics["certificate_error"] for report in resumed if "certificate_error" in report.metrics]
        assert len(certified) == 1
        for name, tensor in training.initialization.items():
            assert torch.equal(resumed.initialization[name], tensor)


def test_the_time_limit_is_checked_during_a_certificate() -> None:
    spec = small(meta={"iterations": 1, "tasks_per_batch": 3}, runtime={"certify_every": 1, "max_seconds": 1e-6})
    training = Training.start(spec)
    training._check_time = lambda: None  # type: ignore[method-assign]
    reports = iter(training)
    while next(reports).metrics:
        pass
    del training._check_time
    with pytest.raises(TimedOut, match="after 0 of 1 meta-iterations"):
        next(reports)


def rough(**runtime: Any) -> JobSpec:
    """A job whose certificates are large, since they refer to the flow, from which Euler's steps of 0.1 are far."""
    return small(
        method={"adjoint": {"kind": "interpolated", "scheme": "euler"}},
        meta={"iterations": 9, "tasks_per_batch": 1},
        evaluation={"every": 100, "epochs": 1},
        runtime={"certify_every": 2, **runtime},
    )


def test_three_certificates_over_the_limit_fail_the_run_resumed_or_not(tmp_path: Path) -> None:
    spec = rough(certify_limit=1e-5)
    training, reports = Training.start(spec), []

    def run() -> None:
        for report in training:
            reports.append(report)
            if report.iteration in (5, 6):
                training.save_checkpoint(tmp_path / str(report.iteration))

    with pytest.raises(CertificateFailed, match=r"limit \(1e-05\) in 3 .* 6 of 9.*: lower") as failure:
        run()
    marks = {one.iteration: one.metrics.get("certificate_over_limit") for one in reports if one.phase == "training"}
    assert marks == {1: None, 2: 1.0, 3: None, 4: 1.0, 5: None, 6: 1.0}
    for before in (5, 6):
        resumed = Training.resume(spec, tmp_path / str(before))
        with pytest.raises(CertificateFailed) as again:
            list(resumed)
        assert resumed.iteration == 6
        assert str(again.value) == str(failure.value)


def test_infinite_certificates_fail_the_run_with_their_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "MOST_EVALUATIONS", 20)
    spec = small(
        solver={"kind": "dopri5", "step": None},
        meta={"iterations": 5},
        runtime={"certify_every": 1},
    )
    training = Training.start(spec)
    for report in training:
        if report.iteration == 3:
            break
    training.save_checkpoint(tmp_path / "3")
    with pytest.raises(CertificateFailed, match=r"3 of 5 \(it is infinite: task 0: .*budget.*\): lower") as failure:
        list(training)
    assert len(caplog.messages) == 3
    assert all("budget" in message for message in caplog.messages)
    with pytest.raises(CertificateFailed) as again:
        list(Training.resume(spec, tmp_path / "3"))
    assert str(again.value) == str(failure.value)


def test_certificates_over_the_limit_now_and_then_fail_nothing() -> None:
    errors = [error for _, error in train(rough()).metrics["certificate_error"]]
    middle = sorted(errors)[1]  # two of the four are above it
    run = train(rough(certify_limit=middle))
    assert [mark for _, mark in run.metrics["certificate_over_limit"]] == [float(error > middle) for error in errors]
    assert sum(mark for _, mark in run.metrics["certificate_over_limit"]) == 2


@pytest.mark.parametrize("kind", ["euler", "heun", "rk4", "bosh3", "dopri5", "midpoint", "dopri8"])
def test_every_solver_of_the_spec_is_built(kind: str) -> None:
    spec = SolverSpec.model_validate({"kind": kind, "guard": False})
    solver = build_solver(spec)
    assert solver.guard is False
    if spec.step is None:
        assert not hasattr(solver, "step") or solver.step is None
    else:
        assert getattr(solver, "step", None) == 0.01


# From end to end


def test_ratings_from_end_to_end(tmp_path: Path) -> None:
    lines = [f"u{u},i{i},{1 + (u * 7 + i * 3 + u * i) % 5}" for u in range(30) for i in range(10)]
    (tmp_path / "ratings.csv").write_text("user,item,rating\n" + "\n".join(lines))
    family = {"kind": "ratings", "dataset": str(OTHER_JOB), "items": 10, "shots": 4, "queries": 5, "test_tasks": 5}
    base = json.loads(small().canonical()) | {"family": family}
    spec = JobSpec.model_validate_json(json.dumps(base))
    run = train(spec, {str(OTHER_JOB): tmp_path / "ratings.csv"})
    assert {"nrmse_user_mean", "nrmse_item_mean", "nrmse_user_item_effects", "nrmse_zero"} <= set(run.metrics)
    run.save(tmp_path / "init")
    model = LearnedModel.read(tmp_path / "init")
    assert model.inputs == run.training.setup.family.inputs
    assert model.spec == spec
