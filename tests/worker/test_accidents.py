"""Accidents of a machine amid jobs and adaptations: tried again and told as what they are, never as the work's own failure."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amaml.adaptation_request import AdaptationRequest
from amaml.run.learned_model import LearnedModel
from amaml.spec import JobSpec, TableSpec
from service.adaptations import store as adaptations
from service.adaptations.tables import Adaptation
from service.core.database import transaction
from tests.support.adaptations import answer, points, regression
from tests.support.jobs import (
    attempts_of,
    bits_of,
    spec,
    submit,
    submit_claimed,
    succeed,
    undisturbed,
    wait_for,
    workspace,
)
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import WorkerProcess, Workers, is_gone
from worker.processes.parent import AdapterProcess, Gone, TrainerProcess
from worker.processes.protocol import (
    Accident,
    Adapted,
    Failed,
    FromTrainer,
    NotAdapted,
    ProgressReport,
    Run,
    Succeeded,
)
from worker.processes.wire import accident, causes

pytestmark = pytest.mark.processes

TABLE = uuid4()


def without_room(pid: int) -> None:
    """From now on no file that the process writes may hold anything: writing one fails, as on a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def with_room(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


# The trainer by itself


@pytest.fixture(scope="module")
def trainer() -> Iterator[TrainerProcess]:
    trainer = TrainerProcess()
    assert trainer.wait_until_ready(CEILING_SECONDS) is not None
    yield trainer
    trainer.kill()


def told(trainer: TrainerProcess, job: JobSpec, folder: Path, table: Path | None = None) -> FromTrainer | Gone:
    """What it says of the job's end; of checkpoints, none is made by a job this short."""
    assert trainer.wait_until_ready(CEILING_SECONDS) is not None
    trainer.send(
        Run(
            job_id="00000000-0000-7000-8000-000000000000",
            attempt=1,
            spec=job.canonical(),
            datasets={str(TABLE): str(table)} if table is not None else {},
            folder=str(folder),
            device="cpu",
            threads=1,
            deadline=time.monotonic() + CEILING_SECONDS,
        )
    )
    said = trainer.receive(CEILING_SECONDS)
    while isinstance(said, ProgressReport):
        said = trainer.receive(CEILING_SECONDS)
    assert said is not None
    return said


def of_a_table() -> JobSpec:
    like = spec(2).model_dump(mode="json")
    family = TableSpec(dataset=TABLE, task="task", inputs=["x"], targets=["y"], shots=2, queries=2)
    return JobSpec.model_validate_json(json.dumps({**like, "family": family.model_dump(mode="json")}))


def test_a_trainer_without_room_for_its_files_tells_of_an_accident(trainer: TrainerProcess, tmp_path: Path) -> None:
    without_room(trainer.pid)
    said = told(trainer, spec(2), tmp_path)
    with_room(trainer.pid)
    assert isinstance(said, Accident), said
    assert said.detail.startswith("The machine of the trainer couldn't read or write its files (File too large")
    assert isinstance(told(trainer, spec(2), tmp_path), Succeeded)


def test_a_trainer_whose_folder_or_data_are_gone_tells_of_an_accident(trainer: TrainerProcess, tmp_path: Path) -> None:
    for said in (
        told(trainer, spec(2), tmp_path / "gone"),
        told(trainer, of_a_table(), tmp_path, table=tmp_path / "gone.parquet"),
    ):
        assert isinstance(said, Accident), said
        assert "No such file or directory" in said.detail


def test_a_damaged_file_is_the_jobs_own_failure(trainer: TrainerProcess, tmp_path: Path) -> None:
    """Though pyarrow raises an OSError for some damage."""
    out = io.BytesIO()
    pq.write_table(pa.table({name: np.zeros(1_000) for name in ("task", "x", "y")}), out)
    whole, path = out.getvalue(), tmp_path / "damaged.parquet"
    path.write_bytes(whole[:-200] + b"\xff" * 192 + whole[-8:])
    said = told(trainer, of_a_table(), tmp_path, table=path)
    assert isinstance(said, Failed), said
    assert said.reason == "bad_data"


def test_the_machines_error_is_found_below_the_one_that_it_was_told_as() -> None:
    def raised(cause: Exception) -> Exception:
        error = ValueError("the data set can't be read")
        error.__cause__ = cause
        return error

    found = accident(raised(OSError(24, "Too many open files")), "trainer")
    assert found is not None
    assert "Too many open files" in found.detail
    assert accident(raised(OSError("Couldn't deserialize thrift")), "trainer") is None
    assert accident(raised(ValueError("line 3")), "trainer") is None
    assert [type(one) for one in causes(raised(pa.ArrowMemoryError("malloc")))] == [ValueError, pa.ArrowMemoryError]


# The adapter by itself


def rows(**changes: Any) -> dict[str, Any]:
    return {"support": points(5), "query": {"x": points(5, seed=2)["x"]}, **changes}


def test_an_adapter_tells_accidents_and_bad_files_apart(adapter: AdapterProcess, tmp_path: Path) -> None:
    path = regression(tmp_path / "init")
    without_room(adapter.pid)
    full = answer(adapter, path, tmp_path, rows())
    with_room(adapter.pid)
    assert isinstance(full, Accident), full
    assert "File too large" in full.detail
    gone = answer(adapter, tmp_path / "gone", tmp_path, rows())
    assert isinstance(gone, Accident), gone
    (tmp_path / "damaged").write_bytes(b"\xff" * 100)
    damaged = answer(adapter, tmp_path / "damaged", tmp_path, rows())
    assert isinstance(damaged, NotAdapted), damaged
    assert damaged.reason == "bad_initialization"
    assert isinstance(answer(adapter, path, tmp_path, rows()), Adapted)


# Through a worker


@pytest.fixture(scope="module")
def worker(workers: Workers) -> WorkerProcess:
    return workers.start_ready(AMAML_ADAPTERS="1")


def child(worker: WorkerProcess, module: str) -> int:
    """The process id of the trainer or the adapter that waits for work."""
    return wait_until(lambda: worker.child(module))  # type: ignore[return-value]


def test_a_job_whose_trainer_has_no_room_is_tried_again_in_another(worker: WorkerProcess) -> None:
    expected = bits_of(undisturbed(spec(30)))
    first = child(worker, "worker.trainer")
    without_room(first)
    job_id = submit(spec(30))
    assert wait_for(job_id, "succeeded").attempt > 1
    assert bits_of(job_id) == expected
    attempt, *later = attempts_of(job_id)
    assert (attempt.reason, attempt.trainer_pid) == ("lost_worker", first)
    assert "couldn't read or write its files (File too large" in (attempt.detail or "")
    assert first not in [one.trainer_pid for one in later]
    wait_until(lambda: is_gone(first))


def test_a_trainer_that_dies_after_its_last_word_has_ended_its_job(worker: WorkerProcess) -> None:
    worker.arm("trainer.told_the_end=kill")
    job_id = submit(spec(5))
    wait_until(lambda: worker.accident_happened)
    assert wait_for(job_id, "succeeded").attempt == 1
    assert [one.reason for one in attempts_of(job_id)] == ["succeeded"]


def test_a_trainer_that_is_ending_gets_no_other_job(worker: WorkerProcess) -> None:
    worker.arm("trainer.told_the_end=stop")
    first = wait_for(submit(spec(5)), "succeeded")
    wait_until(lambda: worker.accident_happened)
    second = submit(spec(5))
    time.sleep(0.3)  # enough for a worker that would give the job to the trainer that has stopped
    pid = attempts_of(first.id)[0].trainer_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_for(second, "succeeded").attempt == 1


@pytest.fixture(scope="module")
def learned(worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory) -> UUID:
    """A job that has succeeded with an initialization for y = f(x)."""
    path = regression(tmp_path_factory.mktemp("learned") / "init")
    job_id = submit_claimed(JobSpec.model_validate_json(LearnedModel.read(path).spec.canonical()))
    succeed(job_id, path.read_bytes())
    return job_id


def adapted(job_id: UUID) -> Adaptation:
    """An adaptation of it, once it has ended."""
    return when_ended(ask(job_id))


def ask(job_id: UUID) -> UUID:
    """The id of an adaptation of it, which waits."""
    asked = AdaptationRequest.model_validate(rows()).model_dump(mode="json", by_alias=True)
    workspace_id = workspace()
    with transaction() as session:
        submitted = adaptations.submit(session, workspace_id, job_id, asked)
        assert submitted is not None
        return submitted.id


def when_ended(adaptation_id: UUID) -> Adaptation:
    def ended() -> bool:
        with transaction() as session:
            return adaptations.has_ended(session, adaptation_id)

    wait_until(ended)
    with transaction() as session:
        return session.get_one(Adaptation, adaptation_id)


def test_an_adaptation_whose_adapter_has_no_room_is_done_by_another(worker: WorkerProcess, learned: UUID) -> None:
    assert adapted(learned).state == "succeeded"
    first = child(worker, "worker.adapter")
    without_room(first)
    adaptation = adapted(learned)
    assert (adaptation.state, adaptation.attempt) == ("succeeded", 2)
    assert is_gone(first)
    assert "couldn't read or write its files (File too large" in worker.log.read_text()


def test_an_adapter_that_dies_after_its_last_word_has_done_its_adaptation(worker: WorkerProcess, learned: UUID) -> None:
    worker.arm("adapter.told_the_end=kill")
    adaptation = adapted(learned)
    wait_until(lambda: worker.accident_happened)
    assert (adaptation.state, adaptation.attempt) == ("succeeded", 1)
    assert adapted(learned).state == "succeeded"


def test_an_adapter_that_is_ending_gets_no_other_adaptation(worker: WorkerProcess, learned: UUID) -> None:
    worker.arm("adapter.told_the_end=stop")
    assert adapted(learned).state == "succeeded"
    wait_until(lambda: worker.accident_happened)
    second = ask(learned)
    time.sleep(0.3)  # enough for a worker that would give it to the adapter that has stopped
    os.kill(child(worker, "worker.adapter"), signal.SIGKILL)
    ended = when_ended(second)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
