"""The life of a job with a real worker, a real broker and real accidents to its trainer."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import pytest
import redis
from sqlalchemy import delete, func, select

from service.core import blobs
from service.core.blobs import BlobNotFound
from service.core.database import transaction
from service.jobs import store as jobs
from service.jobs.tables import Checkpoint, Evaluation, Job
from service.studies import store as studies
from service.workers import store as living
from tests.support.jobs import (
    ask,
    attempts_of,
    bits_of,
    events_of,
    job_of,
    metrics_of,
    result_of,
    spec,
    submit,
    undisturbed,
    wait_for,
    wait_for_iteration,
    workspace,
)
from tests.support.studies import jobs_of, submit_study, wait_for_end
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess, Workers, is_gone, trainer_of

pytestmark = pytest.mark.processes

LONG = 400
"""Iterations: some seconds."""


@pytest.fixture(scope="module")
def expected(worker: WorkerProcess) -> str:
    """The hash of what a job of LONG iterations learns when nothing happens to it."""
    return bits_of(undisturbed(spec(LONG)))


def test_a_worker_that_can_not_start_ends(workers: Workers, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("no folder")
    worker = workers.start(AMAML_HOME=str(home))
    assert worker.wait() == 1
    assert "this worker can't start" in worker.log.read_text()


def test_a_job_whose_files_can_not_be_kept_is_tried_again_and_costs_no_trainer(
    worker: WorkerProcess, workers: Workers
) -> None:
    (folder,) = (workers.home / "attempts").iterdir()
    folder.rmdir()
    job_id = submit(spec(30))
    wait_until(lambda: any(one.reason for one in attempts_of(job_id)))
    folder.mkdir(mode=0o700)
    wait_for(job_id, "succeeded")
    first, *_ = ended = attempts_of(job_id)
    assert first.reason == "lost_worker"
    assert "can't keep the job's files" in (first.detail or "")
    assert ended[0].trainer_pid == ended[-1].trainer_pid


def test_a_job_succeeds_with_initialization_metrics_and_events(worker: WorkerProcess) -> None:
    job_id = submit(spec(30))
    job = wait_for(job_id, "succeeded")
    metadata = result_of(job_id)
    assert metadata["job_id"] == str(job_id)
    assert (job.parameters, job.iteration, job.attempt) == (25, 30, 1)
    assert job.lease_expires_at is None
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.ended_at > job.started_at > job.created_at
    metrics = metrics_of(job_id)
    assert list(metrics["meta_loss"]) == list(range(1, 31))
    assert list(metrics["nrmse_tuned"]) == [0, 30]
    assert job.metrics["meta_loss"] == metrics["meta_loss"][30]
    events = events_of(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["state"] for event in events if event.kind == "state"] == ["queued", "running", "succeeded"]
    assert [event.data["step"] for event in events if event.kind == "checkpoint"] == [10, 20, 30]
    assert any(event.kind == "progress" for event in events)
    assert [(one.reason, one.number) for one in attempts_of(job_id)] == [("succeeded", 1)]


def test_queued_jobs_survive_a_broker_that_forgets_everything(worker: WorkerProcess, workers: Workers) -> None:
    ids = [submit(spec(5, seed=seed)) for seed in range(10)]
    with redis.Redis.from_url(workers.environment["AMAML_BROKER_URL"]) as broker:
        waiting = True
        while waiting:
            broker.flushdb()
            with transaction() as session:
                queued = session.scalars(select(func.count()).where(Job.id.in_(ids), Job.state == "queued")).one()
            waiting = queued > 5
            time.sleep(0.02)
        broker.flushdb()
    for job_id in ids:
        wait_for(job_id, "succeeded")
    assert [job_of(job_id).attempt for job_id in ids] == [1] * 10


def test_a_job_whose_wake_up_was_lost_is_found(worker: WorkerProcess) -> None:
    job_id = submit(spec(2), wake=False)
    wait_for(job_id, "succeeded")


def test_a_job_whose_trainer_is_killed_goes_on_to_the_same_bits(worker: WorkerProcess, expected: str) -> None:
    job_id = submit(spec(LONG))
    wait_for_iteration(job_id, 25)
    _kill_trainer(job_id, signal.SIGKILL)
    wait_until(lambda: job_of(job_id).attempt == 2)
    job = wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    assert [one.reason for one in attempts_of(job_id)] == ["killed", "succeeded"]
    assert job.status_reason is None
    queued_again = [event.data for event in events_of(job_id) if event.data.get("state") == "queued"][-1]
    assert queued_again["reason"] == "killed"
    assert re.search(r"SIGKILL.*from the checkpoint at iteration ([2-9]\d|\d{3})", queued_again["detail"])
    assert list(metrics_of(job_id)["meta_loss"]) == list(range(1, LONG + 1))


def _kill_trainer(job_id: UUID, number: signal.Signals) -> None:
    trainer = trainer_of(job_id)
    assert trainer is not None
    os.kill(trainer, number)


def test_a_native_crash_is_called_so_and_ends_after_the_attempts_allowed(worker: WorkerProcess) -> None:
    job_id = submit(spec(100_000, max_attempts=1, checkpoint_every=1_000_000))
    wait_for_iteration(job_id, 1)
    _kill_trainer(job_id, signal.SIGSEGV)
    job = wait_for(job_id, "failed")
    assert job.status_reason == "native_crash"
    assert "SIGSEGV" in (job.status_detail or "")


def test_a_cancelled_job_loses_its_trainer(worker: WorkerProcess) -> None:
    job_id = submit(spec(100_000))
    wait_for_iteration(job_id, 1)
    trainer = trainer_of(job_id)
    assert trainer is not None
    ask(job_id, "cancel")
    wait_until(lambda: is_gone(trainer))
    wait_for(job_id, "cancelled")
    assert attempts_of(job_id)[0].reason == "cancelled"


def test_a_paused_job_resumes_to_the_same_bits(worker: WorkerProcess, expected: str) -> None:
    job_id = submit(spec(LONG))
    wait_for_iteration(job_id, 12)
    ask(job_id, "pause")
    paused = wait_for(job_id, "paused")
    with transaction() as session:
        newest = session.scalars(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job_id)).one()
    assert paused.iteration == newest
    ask(job_id, "resume")
    wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    assert [one.reason for one in attempts_of(job_id)] == ["paused", "succeeded"]


def test_an_extended_job_learns_what_one_as_long_from_the_start_learns(worker: WorkerProcess, expected: str) -> None:
    begun = 245  # between two checkpoints: the evaluation at that end isn't one of the longer run
    job_id = submit(spec(begun))
    ended = wait_for(job_id, "succeeded")
    assert begun in metrics_of(job_id)["tuned_best_epoch"]
    with transaction() as session:
        assert jobs.extend(session, ended.workspace_id, job_id, spec(begun).extended(LONG))
    job = job_of(job_id)
    assert (job.status_reason, job.iterations, job.ended_at) == ("extended", LONG, None)
    assert job.initialization_blob_id == ended.initialization_blob_id, (
        "what it has learned stays until it has learned more"
    )
    wait_for_iteration(job_id, begun + 10)
    _kill_trainer(job_id, signal.SIGKILL)
    job = wait_for(job_id, "succeeded")
    assert bits_of(job_id) == expected
    assert job.initialization_blob_id != ended.initialization_blob_id
    with pytest.raises(BlobNotFound):
        list(blobs.read(ended.initialization_blob_id or job_id))
    found = metrics_of(job_id)
    assert list(found["meta_loss"]) == list(range(1, LONG + 1))
    assert set(found["tuned_best_epoch"]) == {0, LONG}
    assert [one.reason for one in attempts_of(job_id)] == ["succeeded", "killed", "succeeded"]


def test_a_job_starts_from_a_checkpoint_of_another(worker: WorkerProcess) -> None:
    source = submit(spec(10))
    wait_for(source, "succeeded")
    fork = submit(spec(5, meta={"init_from": {"job": str(source), "step": 10}}))
    wait_for(fork, "succeeded")
    last, first = metrics_of(source)["meta_loss"], metrics_of(fork)["meta_loss"]
    assert first[1] != last[1]
    orphan = spec(5, meta={"init_from": {"job": str(source), "step": 10}})
    with transaction() as session:  # the checkpoint is deleted after the job was let in, and before a worker claims it
        orphan_id = jobs.submit(session, job_of(source).workspace_id, orphan).id
        session.execute(delete(Checkpoint).where(Checkpoint.job_id == source))
    job = wait_for(orphan_id, "failed")
    assert job.status_reason == "bad_data"
    assert "checkpoint at iteration 10" in (job.status_detail or "")


def test_a_spec_of_an_earlier_release_runs_and_one_of_an_unknown_family_fails(worker: WorkerProcess) -> None:
    def stored(document: dict[str, Any]) -> UUID:
        with transaction() as session:
            job = jobs.submit(session, workspace_id, spec(5))
            job.spec = document
            return job.id

    workspace_id, now = workspace(), spec(5).model_dump(mode="json")
    earlier = {**now, "meta": {name: now["meta"][name] for name in ("iterations", "tasks_per_batch")}}
    del earlier["preset"]
    wait_for(stored(earlier), "succeeded")
    job = wait_for(stored({**now, "family": {"kind": "uninstalled"}}), "failed")
    assert job.status_reason == "bad_spec"
    assert "uninstalled" in (job.status_detail or "")


def test_a_diverging_job_fails_at_once_with_the_remedy(worker: WorkerProcess) -> None:
    job_id = submit(spec(50, meta={"optimizer": {"kind": "sgd", "lr": 100.0}}))
    job = wait_for(job_id, "failed")
    assert job.status_reason == "solver_failed"
    assert "use a step below" in (job.status_detail or "")
    assert job.attempt == 1


def test_what_a_job_leaves_for_the_report(worker: WorkerProcess) -> None:
    study_id = submit_study(1, 30, evaluation={"every": 10, "tasks": 2, "epochs": 20})
    wait_for_end(study_id)
    (job,) = jobs_of(study_id)
    with transaction() as session:
        found = list(session.scalars(select(Evaluation).where(Evaluation.job_id == job.id).order_by(Evaluation.step)))
        (result,) = studies.results(session, study_id)
    assert [(one.step, one.metric, one.higher_is_better) for one in found] == [
        (step, "nrmse", False) for step in (0, 10, 20, 30)
    ]
    metrics = metrics_of(job.id)
    for one in found:
        assert {name: len(scores) for name, scores in one.scores.items()}.items() >= {
            "flow": 2,
            "tuned": 2,
            "random": 2,
        }.items()
        for name in ("flow", "tuned", "random"):
            assert sum(one.scores[name]) / 2 == pytest.approx(metrics[f"nrmse_{name}"][one.step])
        assert one.curve["epochs"] == [0, 10, 20]
        assert one.curve["mean"][-1] == pytest.approx(metrics["nrmse_tuned"][one.step])
        assert one.curve["error"][-1] == pytest.approx(metrics["nrmse_tuned_error"][one.step])
    assert [one.along_flow is None for one in found] == [True, True, True, False]
    assert (found[-1].along_flow or {})["times"][-1] == 1.0
    memory = list(metrics["memory_bytes"].values())
    assert 0 <= memory[0] <= memory[-1] < 200e6  # of the run alone: the process itself is larger
    assert memory == sorted(memory)
    assert result.evaluation is not None
    assert result.evaluation.step == 30
    assert result.seconds == pytest.approx(median(metrics["seconds"].values()))
    assert job.metrics["memory_bytes"] == memory[-1]


def test_a_failed_job_does_not_stop_the_others(worker: WorkerProcess) -> None:
    study_id = submit_study(4, 50, meta={"optimizer": {"kind": "sgd", "lr": 100.0}})
    wait_for_end(study_id)
    assert {(job.state, job.status_reason) for job in jobs_of(study_id)} == {("failed", "solver_failed")}


def test_a_job_for_a_device_that_no_worker_has_says_so_and_waits(worker: WorkerProcess) -> None:
    with transaction() as session:
        if living.any_with(session, "cuda"):
            pytest.skip("this machine has a CUDA device")
    job_id = submit(spec(2, device="cuda"))
    wait_until(lambda: job_of(job_id).status_reason == "no_cuda_worker")
    assert job_of(job_id).state == "queued"
    ask(job_id, "cancel")


def test_the_celery_process_has_no_torch(worker: WorkerProcess) -> None:
    assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()


def test_no_file_is_left_by_ended_attempts(worker: WorkerProcess, workers: Workers) -> None:
    wait_until(lambda: not list((workers.home / "attempts").glob("*/*")))
