"""Who may claim which job, and fences against writes of attempts that are over, on a real store and without processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.core import blobs
from service.core.database import transaction
from service.jobs import attempts, claims, progress
from service.jobs.claims import Claim, StaleFence, may_claim, take_next
from service.jobs.tables import Checkpoint, Job, Metric
from service.workers import store as workers
from service.workers.tables import Worker
from tests.support.jobs import (
    LEASE,
    ask,
    attempts_of,
    claimant,
    events_of,
    fenced,
    job_of,
    lapse,
    spec,
    submit,
    take,
    taken,
)
from worker.maintenance.reconciler import end_one_lapsed_lease

pytestmark = pytest.mark.usefixtures("store")


def test_the_claim_itself_sets_lease_and_fence() -> None:
    job_id = submit(spec())
    claim = taken()
    job = job_of(job_id)
    with transaction() as session:
        left = session.scalars(select(Job.lease_expires_at - func.now())).one()
    assert (claim.id, claim.attempt, job.state, job.attempt) == (job_id, 1, "running", 1)
    assert LEASE - timedelta(minutes=1) < left <= LEASE
    assert [(one.number, one.ended_at) for one in attempts_of(job_id)] == [(1, None)]
    assert [one.data["state"] for one in events_of(job_id)] == ["queued", "running"]
    assert take() is None


def test_the_longest_waiting_job_comes_first_and_one_that_backs_off_does_not_come() -> None:
    first, second, third = submit(spec(seed=1)), submit(spec(seed=2)), submit(spec(seed=3))
    with transaction() as session:
        session.execute(update(Job).where(Job.id == first).values(queued_at=func.now() + timedelta(minutes=1)))
    assert [taken().id, taken().id] == [second, third]
    assert take() is None


def test_claims_at_the_same_moment_get_different_jobs() -> None:
    ids = {submit(spec(seed=seed)) for seed in range(4)}
    together = Barrier(8)

    def claim_one(_: int) -> Claim | None:
        together.wait()
        return take()

    with ThreadPoolExecutor(8) as pool:
        got = [claim.id for claim in pool.map(claim_one, range(8)) if claim is not None]
    assert len(got) == len(set(got))
    while (claim := take()) is not None:  # a claimant that met only locked rows went home empty-handed
        got.append(claim.id)
    assert sorted(got) == sorted(ids)


def test_only_a_worker_with_cuda_gets_a_job_that_needs_it() -> None:
    job_id = submit(spec(device="cuda"))
    assert take() is None
    with transaction() as session:
        claims.explain_missing_device(session, cuda=False)
    assert "CUDA" in (job_of(job_id).status_detail or "")
    claim = take("cpu", "cuda")
    assert claim is not None
    assert claim.runtime["device"] == "cuda"
    assert job_of(job_id).status_detail is None


def test_a_resumed_job_gets_the_device_and_threads_of_its_first_attempt() -> None:
    submit(spec(device="auto", threads=None))
    claim = take("cpu", "cuda")
    assert claim is not None
    assert claim.runtime == {"device": "cuda", "threads": 3, "versions": {"torch": "2"}}
    blob = blobs.write([b"checkpoint"]).blob_id
    fenced(claim, lambda session, job: progress.add_checkpoint(session, job, 10, blob))
    fenced(claim, attempts.stopped)
    assert take() is None, "it began on cuda and would end in other bits on a cpu"
    with transaction() as session:
        again = take_next(session, claimant("cpu", "cuda", threads=8, versions={"torch": "3"}), LEASE)
    assert again is not None
    assert again.runtime == claim.runtime
    assert again.checkpoint == (10, blob)


def test_a_job_for_the_cpu_is_left_to_workers_without_a_gpu_as_long_as_one_lives() -> None:
    on_cpu, on_any = submit(spec(device="cpu")), submit(spec(device="auto"))
    other = uuid4()
    with transaction() as session:
        workers.seen(session, other, "here", 1, ["cpu"])
        assert may_claim(session, ["cpu", "cuda"]) == ["auto", "cuda"]
        assert may_claim(session, ["cpu"]) == ["auto", "cpu"]
    claim = take("cpu", "cuda")
    assert claim is not None
    assert claim.id == on_any, "which came later"
    assert take("cpu", "cuda") is None
    with transaction() as session:
        workers.gone(session, other)
        workers.seen(
            session, uuid4(), "here", 2, ["cpu", "cuda"], {"name": "NVIDIA A", "memory_bytes": 1, "uuid": "GPU-1"}
        )
    claim = take("cpu", "cuda")
    assert claim is not None
    assert (claim.id, claim.runtime["device"]) == (on_cpu, "cpu")


def test_a_job_that_began_on_one_model_of_gpu_is_resumed_on_that_model_alone() -> None:
    job_id = submit(spec(device="auto"))
    claim = take("cpu", "cuda", gpu="NVIDIA A")
    assert claim is not None
    fenced(claim, lambda session, job: progress.add_checkpoint(session, job, 10, blobs.write([b"checkpoint"]).blob_id))
    fenced(claim, attempts.stopped)
    assert take("cpu", "cuda", gpu="NVIDIA B") is None
    assert take("cpu", "cuda") is None, "a worker that names no model"
    with transaction() as session:
        assert not claims.some_wait(session, timedelta(0), ["cuda"], ["NVIDIA B"])
        assert claims.some_wait(session, timedelta(0), ["cuda"], ["NVIDIA B", "NVIDIA A"])
        claims.explain_missing_device(session, cuda=True, gpus=["NVIDIA B"])
    told = job_of(job_id)
    assert told.status_reason == "no_such_gpu"
    assert "written on a GPU of the model NVIDIA A, " in (told.status_detail or "")
    with transaction() as session:
        claims.explain_missing_device(session, cuda=True, gpus=["NVIDIA A"])
    assert job_of(job_id).status_reason is None
    again = take("cpu", "cuda", gpu="NVIDIA A")
    assert again is not None
    assert again.checkpoint is not None


def test_a_job_without_a_checkpoint_begins_anew_on_another_model_of_gpu() -> None:
    job_id = submit(spec(device="cuda"))
    claim = take("cpu", "cuda", gpu="NVIDIA A")
    assert claim is not None
    assert job_of(job_id).gpu == "NVIDIA A"
    fenced(claim, attempts.stopped)
    assert job_of(job_id).gpu is None
    assert take("cpu", "cuda", gpu="NVIDIA B") is not None


def test_living_workers_name_their_gpus() -> None:
    with transaction() as session:
        for number, name in enumerate(["NVIDIA A", "NVIDIA B", "NVIDIA A", None]):
            gpu = name and {"name": name, "memory_bytes": 1 << 30, "uuid": f"GPU-{number}"}
            workers.seen(session, uuid4(), "here", number, ["cpu", "cuda"] if gpu else ["cpu"], gpu or None)
        assert sorted(workers.gpus(session)) == ["NVIDIA A", "NVIDIA B"]
        session.execute(update(Worker).values(seen_at=func.now() - timedelta(minutes=1)))
        assert workers.gpus(session) == []


@pytest.mark.parametrize("end", ["stop", "crash", "pause"])
def test_a_job_without_a_checkpoint_begins_anew_wherever_it_may_run(end: str) -> None:
    job_id = submit(spec(device="auto"))
    claim = take("cpu", "cuda")
    assert claim is not None
    assert job_of(job_id).device == "cuda"
    if end == "crash":
        fenced(claim, lambda session, job: attempts.crashed(session, job, "killed", "It was killed"))
    elif end == "stop":
        fenced(claim, attempts.stopped)
    else:
        ask(job_id, "pause")
        fenced(claim, attempts.stopped)
        ask(job_id, "resume")
    again = take("cpu")
    assert again is not None
    assert again.runtime["device"] == "cpu"


def test_a_job_whose_cuda_worker_was_lost_says_that_none_is_left() -> None:
    job_id = submit(spec(device="cuda"))
    assert take("cuda") is not None
    lapse(job_id)
    assert end_one_lapsed_lease("job")
    assert job_of(job_id).status_reason == "lost_worker"
    with transaction() as session:
        claims.explain_missing_device(session, cuda=False)
    assert job_of(job_id).status_reason == "no_cuda_worker"
    with transaction() as session:
        claims.explain_missing_device(session, cuda=True)
    assert job_of(job_id).status_reason is None


WRITES: dict[str, Callable[[Session, Job], Any]] = {
    "progress": lambda _, job: progress.advance(job, "training", 5, None),
    "metrics": lambda session, job: progress.add_metrics(session, job, {"meta_loss": [(5, 0.5)]}),
    "event": progress.write_event,
    "checkpoint": lambda session, job: progress.add_checkpoint(session, job, 5, blobs.write([b"x"]).blob_id),
    "success": lambda session, job: attempts.succeeded(session, job, blobs.write([b"x"]).blob_id, 7, iteration=9),
    "failure": lambda session, job: attempts.failed(session, job, "diverged", "It diverged."),
    "stop": attempts.stopped,
    "crash": lambda session, job: attempts.crashed(session, job, "killed", "It was killed"),
}


@pytest.mark.parametrize("since", ["requeued", "claimed again", "cancelled"])
@pytest.mark.parametrize("write", WRITES)
def test_no_write_of_a_stale_fence_is_taken(write: str, since: str) -> None:
    job_id = submit(spec())
    claim = taken()
    if since == "cancelled":
        ask(job_id, "cancel")
    lapse(job_id)
    assert end_one_lapsed_lease("job")
    if since == "claimed again":
        taken()
    before = job_of(job_id), attempts_of(job_id), events_of(job_id)
    with pytest.raises(StaleFence):
        fenced(claim, WRITES[write])
    after = job_of(job_id), attempts_of(job_id), events_of(job_id)
    assert [_columns(row) for row in _flat(before)] == [_columns(row) for row in _flat(after)]
    with transaction() as session:
        assert session.scalars(select(Checkpoint)).all() == []
        assert session.scalars(select(Metric)).all() == []


def _flat(rows: tuple[Job, list[Any], list[Any]]) -> list[Any]:
    return [rows[0], *rows[1], *rows[2]]


def _columns(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.key) for column in row.__table__.columns}
