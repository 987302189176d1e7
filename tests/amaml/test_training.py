"""The training loop: one step by hand, what a run reports, which of its results it selects, and what ends it."""

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
from amaml.registry import build_family, build_model
from amaml.run.baselines import LENGTHS
from amaml.run.initialization import read, write
from amaml.run.learned_model import LearnedModel
from amaml.run.training import Diverged, TimedOut, Training, train
from amaml.spec import JobSpec, MLPSpec
from tests.amaml.jobs import small

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
