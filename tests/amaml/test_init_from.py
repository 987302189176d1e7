"""What a run takes over from another: θ alone, θ and the learned flow, or the full state, to continue to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from amaml.run.checkpoint import CheckpointError
from amaml.run.initialization import InitializationError
from amaml.run.learned_flow import RATES
from amaml.run.training import Training, train
from amaml.spec import JobSpec
from tests.amaml.jobs import bits, small

JOB = "0198b2a0-0000-7000-8000-000000000002"
LEARNS: dict[str, Any] = {
    "method": {"learn": ["rates"]},
    "meta": {"optimizer": {"kind": "adamw", "lr": 0.02}, "clip": {"window": 20}, "average": 0.9},
    "evaluation": {"every": 5, "epochs": 2, "select": "validation"},
}


def spec(state: str | None = None, step: int | None = None, **changes: Any) -> JobSpec:
    parts = {name: {**LEARNS.get(name, {}), **changes.get(name, {})} for name in {*LEARNS, *changes}}
    if state is not None:
        parts["meta"]["init_from"] = {"job": JOB, "state": state, "step": step}
    return small(**parts)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints and the initialization of a run of 20 meta-iterations."""
    torch.set_num_threads(1)
    folder, training = tmp_path_factory.mktemp("source"), Training.start(spec())
    for report in training:
        training.save_checkpoint(folder / f"{report.iteration}")
    training.save_initialization(folder / "init")
    return folder


@pytest.mark.parametrize("step", [7, 10])
def test_a_fork_with_the_same_spec_ends_in_the_bits_of_the_run_itself(source: Path, tmp_path: Path, step: int) -> None:
    undisturbed = Training.start(spec())
    reports = bits(list(undisturbed))
    fork = Training.start(spec("full", step), initialization=source / str(step))
    assert fork.iteration == step
    ours = []
    for report in fork:
        ours.append(report)
        if report.iteration == 13:
            break
    fork.save_checkpoint(tmp_path / "checkpoint")
    ours += list(Training.resume(spec("full", step), tmp_path / "checkpoint"))
    assert bits(ours) == [point for point in reports if point[0] > step]
    ended = Training.resume(spec("full", step), tmp_path / "checkpoint")
    list(ended)
    for state in ("theta", "average", "best"):
        for name, tensor in getattr(undisturbed.state, state).items():
            assert torch.equal(getattr(ended.state, state)[name], tensor)


def test_a_fork_of_more_meta_iterations_is_the_longer_run(source: Path) -> None:
    """It starts from the source's last checkpoint but one, since the longer run doesn't evaluate where the source ended."""
    longer: dict[str, Any] = {"meta": {"iterations": 27}}
    undisturbed = Training.start(spec(**longer))
    list(undisturbed)
    fork = Training.start(spec("full", 20, **longer), initialization=source / "20")
    list(fork)
    for name, tensor in undisturbed.initialization.items():
        assert torch.equal(fork.initialization[name], tensor)


def test_what_was_learned_of_the_flow_is_taken_over(source: Path) -> None:
    begun = Training.start(spec("learned"), initialization=source / "init")
    assert begun.iteration == 0
    learned = begun.learned.logarithms
    assert set(learned) == {RATES + name for name in begun.initialization}
    assert any(float(tensor.abs().max()) > 0 for tensor in learned.values())
    plain = Training.start(spec("theta"), initialization=source / "init")
    assert all(float(tensor.abs().max()) == 0 for tensor in plain.learned.logarithms.values())
    for name, tensor in begun.initialization.items():
        assert torch.equal(plain.initialization[name], tensor)


def test_a_learned_flow_is_kept_by_a_method_that_does_not_learn_it(source: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"method": {"learn": []}, "meta": {"iterations": 3}}
    run = Training.start(spec("learned", **how), initialization=source / "init")
    before = run.learned.logarithms
    for report in run:
        if report.iteration == 2:
            break
    run.save_checkpoint(tmp_path / "checkpoint")
    resumed = Training.resume(spec("learned", **how), tmp_path / "checkpoint")
    list(run), list(resumed)
    for name, tensor in before.items():
        assert torch.equal(run.state.learned.logarithms[name], tensor)
    for name, tensor in run.initialization.items():
        assert torch.equal(resumed.initialization[name], tensor)


@pytest.mark.parametrize(
    ("changes", "file", "sentence"),
    [
        ({"meta": {"iterations": 7}}, "7", "after 7 meta-iterations, and meta.iterations is 7, so that none is left"),
        ({"meta": {"optimizer": {"kind": "sgd"}}}, "7", "has meta.optimizer.kind adamw, and this one sgd"),
        ({"method": {"learn": []}}, "7", r"has method.learn \['rates'\], and this one \[\]"),
        ({"model": {"hidden": [9]}}, "7", "give an initialization of the same model"),
    ],
)
def test_a_fork_that_can_not_go_on_is_refused(source: Path, changes: dict[str, Any], file: str, sentence: str) -> None:
    with pytest.raises(InitializationError, match=sentence):
        Training.start(spec("full", 7, **changes), initialization=source / file)


def test_a_fork_without_an_average_keeps_what_it_trains(source: Path) -> None:
    fork = Training.start(spec("full", 7, meta={"average": None}), initialization=source / "7")
    list(fork)
    assert not fork.state.average
    begun = Training.start(spec("theta", evaluation={"select": "last"}), initialization=source / "7")
    first = Training.start(spec("full", 7, evaluation={"select": "last"}), initialization=source / "7")
    list(first)
    assert first.state.chosen_at == 20
    assert not all(torch.equal(tensor, begun.initialization[name]) for name, tensor in first.initialization.items())


def test_scores_of_other_validation_tasks_are_not_compared(source: Path) -> None:
    same = Training.start(spec("full", 7), initialization=source / "7")
    other = Training.start(spec("full", 7, evaluation={"tasks": 3}), initialization=source / "7")
    assert same.state.progress.best is not None
    assert other.state.progress.best is None
    assert not other.state.best


def test_a_run_of_phases_is_forked_at_its_end(tmp_path: Path) -> None:
    phases: list[dict[str, Any]] = [
        {"method": {"kind": "reptile"}, "share": 0.5},
        {"method": {"kind": "amaml", "learn": ["rates"]}, "share": 0.5, "optimizer": {"kind": "sgd", "lr": 0.1}},
    ]
    training = Training.start(small(meta={"iterations": 4, "phases": phases}))
    list(training)
    training.save_checkpoint(tmp_path / "4")
    init = {"job": JOB, "state": "full", "step": 4}
    how: dict[str, Any] = {"iterations": 6, "optimizer": {"kind": "sgd", "lr": 0.1}, "init_from": init}
    fork = Training.start(small(method={"learn": ["rates"]}, meta=how), initialization=tmp_path / "4")
    list(fork)
    assert fork.iteration == 6
    reptile = small(method={"kind": "reptile"}, meta={**how, "init_from": {**init, "state": "learned"}})
    with pytest.raises(InitializationError, match="which method reptile doesn't use"):
        Training.start(reptile, initialization=tmp_path / "4")
    later = [{"method": {"kind": "amaml"}, "share": 0.5}, {"method": {"kind": "reptile"}, "share": 0.5}]
    with pytest.raises(InitializationError, match="which method reptile doesn't use"):
        Training.start(
            small(meta={"phases": later, "init_from": {**init, "state": "learned"}}), initialization=tmp_path / "4"
        )


def test_what_was_learned_in_float32_is_converted_and_a_fork_refused(source: Path) -> None:
    double: dict[str, Any] = {"runtime": {"dtype": "float64"}, "meta": {"iterations": 2}}
    run = Training.start(spec("learned", **double), initialization=source / "init")
    list(run)
    assert all(tensor.dtype is torch.float64 for tensor in run.state.trained.values())
    with pytest.raises(InitializationError, match=r"has runtime\.dtype float32, and this one float64"):
        Training.start(spec("full", 7, runtime={"dtype": "float64"}), initialization=source / "7")


def test_a_learned_length_excludes_a_schedule(tmp_path: Path) -> None:
    train(small(method={"kind": "comln"}, meta={"iterations": 2})).save(tmp_path / "init")
    begun = small(trajectory={"schedule": [[1, 1.0]]}, meta={"init_from": {"job": JOB, "state": "learned"}})
    with pytest.raises(InitializationError, match="holds a learned length, and trajectory has a schedule or horizons"):
        train(begun, initialization=tmp_path / "init")


def test_a_fork_needs_a_checkpoint(source: Path) -> None:
    with pytest.raises(CheckpointError, match="is an initialization, not a checkpoint"):
        Training.start(spec("full", 7), initialization=source / "init")
    with pytest.raises(ValidationError, match="name the checkpoint's step, or set state to learned"):
        spec("full")


def test_a_method_that_does_not_use_a_learned_flow_is_refused(source: Path) -> None:
    reptile: dict[str, Any] = {"method": {"kind": "reptile"}, "meta": {"iterations": 2, "init_from": {"job": JOB}}}
    assert train(small(**reptile), initialization=source / "init").training.iteration == 2
    reptile["meta"]["init_from"]["state"] = "learned"
    with pytest.raises(InitializationError, match="which method reptile doesn't use: use amaml or comln"):
        train(small(**reptile), initialization=source / "init")


def test_it_starts_from_another_runs_initialization_or_checkpoint(tmp_path: Path) -> None:
    first = train(small())
    first.save(tmp_path / "init")
    first.training.save_checkpoint(tmp_path / "checkpoint")
    still = small(meta={"iterations": 1, "optimizer": {"kind": "sgd", "lr": 1e-30}, "init_from": {"job": JOB}})
    for name in ("init", "checkpoint"):
        run = train(still, initialization=tmp_path / name)
        assert all(torch.equal(run.initialization[name], first.initialization[name]) for name in run.initialization)
    # The scores of the random start are the spec's own, whatever the run starts from.
    assert run.metrics["nrmse_random"][0][1] == first.metrics["nrmse_random"][0][1]


def test_init_from_without_a_file() -> None:
    with pytest.raises(ValueError, match=r"set meta\.init_from to null"):
        Training.start(small(meta={"init_from": {"job": JOB}}))


def test_init_from_another_model(tmp_path: Path) -> None:
    train(small()).save(tmp_path / "init")
    with pytest.raises(InitializationError, match="same model"):
        Training.start(small(model={"hidden": [9]}), initialization=tmp_path / "init")
