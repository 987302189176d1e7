"""A run that is stopped and resumed from its checkpoint ends in the bits of an undisturbed one.

For every method, family and architecture that a job can name, within one process; what processes and their ends do to it is
tested in tests/faults/test_bits.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from amaml.run.checkpoint import CheckpointError
from amaml.run.initialization import read, write
from amaml.run.training import Report, Training
from amaml.spec import JobSpec
from tests.amaml.jobs import METHODS, bits, name_of, sha256, small
from tests.support.cases import Case, cases, job

DATASET = "0198b2a0-0000-7000-8000-000000000003"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def check(spec: JobSpec, stop: int, folder: Path, datasets: dict[str, Path] | None = None) -> None:
    """Runs the spec as a whole, and again in two parts divided after `stop` iterations; compares results and metrics."""
    files = datasets or {}
    whole = Training.start(spec, files)
    undisturbed = list(whole)
    whole.save_initialization(folder / "whole", {"job_id": "a"})

    first = Training.start(spec, files)
    before: list[Report] = []
    for report in first:
        before.append(report)
        if report.iteration == stop:
            break
    first.save_checkpoint(folder / "checkpoint")
    torch.manual_seed(torch.seed())
    second = Training.resume(spec, folder / "checkpoint", files)
    assert second.iteration == stop
    after = list(second)
    second.save_initialization(folder / "resumed", {"job_id": "a"})

    assert sha256(folder / "whole") == sha256(folder / "resumed")
    assert bits(before) + bits(after) == bits(undisturbed)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_kind_of_run_resumes_to_the_same_bits(case: Case, tmp_path: Path) -> None:
    files: dict[str, Path] = {}

    def write(content: bytes) -> str:
        files[DATASET] = tmp_path / "data set"
        files[DATASET].write_bytes(content)
        return DATASET

    spec = job(case, 8, 4, write)
    check(spec, 4, tmp_path, files)  # an evaluation is due, but not done
    check(spec, 5, tmp_path, files)


@pytest.mark.parametrize(
    "spec",
    [
        small(),
        small(evaluation={"select": "validation", "every": 4}, solver={"kind": "dopri5", "step": None}),
        small(runtime={"dtype": "float64"}, meta={"optimizer": {"kind": "sgd", "schedule": "cosine", "momentum": 0.9}}),
        small(
            method={"learn": ["rates", "length"]},
            meta={
                "optimizer": {"kind": "adamw", "betas": [0.5, 0.9], "weight_decay": 0.1, "warmup": 5},
                "clip": {"window": 10},
                "learn_lr": 0.1,
                "average": 0.9,
            },
        ),
        small(
            meta={
                "average": 0.9,
                "phases": [
                    {"method": {"kind": "reptile"}, "share": 0.35, "optimizer": {"lr": 0.01}},
                    {"method": {"kind": "amaml", "learn": ["rates"]}, "share": 0.3, "clip": {"window": 10}},
                    {"method": {"kind": "comln"}, "share": 0.35},
                ],
            },
        ),
    ],
    ids=["adam", "selected on validation", "sgd", "clipped, averaged and learned", "phases"],
)
@pytest.mark.parametrize("stop", [7, 10])
def test_so_do_optimizers_schedules_and_selections(tmp_path: Path, spec: JobSpec, stop: int) -> None:
    check(spec, stop, tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_so_do_methods_by_fixed_steps(tmp_path: Path, method: dict[str, object]) -> None:
    check(small(method=method, meta={"iterations": 6}, evaluation={"every": 3, "epochs": 2}), 4, tmp_path)


@pytest.mark.parametrize("method", [{"kind": "amaml", "learn": ["rates"]}, {"kind": "reptile"}], ids=name_of)
def test_a_longer_run_goes_on_from_a_shorter_ones_checkpoint(method: dict[str, object], tmp_path: Path) -> None:
    changes = {"method": method, "evaluation": {"every": 7, "select": "validation"}}
    short, long = (small(**changes, meta={"iterations": iterations, "average": 0.9}) for iterations in (10, 20))
    whole = Training.start(long)
    undisturbed = list(whole)
    whole.save_initialization(tmp_path / "whole")
    before = []
    for report in (first := Training.start(short)):
        if report.iteration <= 8:
            before.append(report)
        if report.iteration == 8:
            first.save_checkpoint(tmp_path / "checkpoint")
    second = Training.resume(short.extended(20), tmp_path / "checkpoint")
    after = list(second)
    second.save_initialization(tmp_path / "extended")
    assert sha256(tmp_path / "extended") == sha256(tmp_path / "whole")
    assert bits(before) + bits(after) == bits(undisturbed)


def test_a_checkpoint_of_another_run_is_no_beginning(tmp_path: Path) -> None:
    run = Training.start(small(meta={"iterations": 10}))
    next(iter(run))
    run.save_checkpoint(tmp_path / "checkpoint")
    for other in (
        small(meta={"iterations": 5}),
        small(meta={"iterations": 20, "tasks_per_batch": 4}),
        small(meta={"iterations": 20}, runtime={"seed": 1}),
    ):
        with pytest.raises(CheckpointError, match="another spec"):
            Training.resume(other, tmp_path / "checkpoint")


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
