"""Jobs small enough for a test, what happens to them by the store's own functions, and what there is of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from amaml.spec import JobSpec
from service.core import blobs
from service.core.database import transaction
from service.jobs import attempts, claims, events, progress
from service.jobs import store as jobs
from service.jobs.claims import Claim, Claimant, hold
from service.jobs.tables import Attempt, Event, Job, Metric
from service.jobs.transitions import FINAL, State
from service.keys import store as keys
from tests.support.waiting import wait_until

LEASE = timedelta(minutes=5)

Id = UUID | str


def spec(
    iterations: int = 20,
    *,
    seed: int = 0,
    meta: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    **runtime: Any,
) -> JobSpec:
    """A job of some milliseconds an iteration."""
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "family": {"kind": "sinusoid", "shots": 5, "queries": 5, "test_tasks": 2},
                "model": {"kind": "mlp", "hidden": [8]},
                "trajectory": {"length": 0.5},
                "solver": {"kind": "euler", "step": 0.1},
                "meta": {"iterations": iterations, "tasks_per_batch": 2, **(meta or {})},
                "evaluation": evaluation or {"every": 1_000_000, "tasks": 2, "epochs": 5},
                "runtime": {"seed": seed, "threads": 1, "checkpoint_every": 10, **runtime},
            }
        )
    )


def workspace(name: str = "default") -> UUID:
    """The id of the workspace of this name, which is made where there is none."""
    with transaction() as session:
        return keys.ensure_workspace(session, name)


def submit(job: JobSpec, *, wake: bool = True) -> UUID:
    """Queues the job in the default workspace as the API does; without its wake-up message where `wake` is false."""
    workspace_id = workspace()
    with transaction() as session:
        return jobs.submit(session, workspace_id, job).id if wake else _queued(session, workspace_id, job)


def submit_claimed(job: JobSpec) -> UUID:
    """Queues the job and has some worker claim it, in one transaction, so that no real worker claims it first."""
    workspace_id = workspace()
    with transaction() as session:
        job_id = _queued(session, workspace_id, job)
        _claim(session, job_id, LEASE)
        return job_id


def _queued(session: Session, workspace_id: UUID, job: JobSpec) -> UUID:
    waits = jobs.check_references(session, workspace_id, job)
    (queued,) = jobs.insert_queued(session, [jobs.queued_row(workspace_id, job, waits)])
    return queued.id


def ask(job_id: UUID, what: Literal["cancel", "pause", "resume"]) -> None:
    """The user asks for it."""
    with transaction() as session:
        workspace_id = session.scalars(select(Job.workspace_id).where(Job.id == job_id)).one()
        assert getattr(jobs, what)(session, workspace_id, job_id)


# What a worker does to a job's rows


def claimant(
    *devices: str, threads: int = 1, versions: Mapping[str, str] | None = None, gpu: str | None = None
) -> Claimant:
    return Claimant(
        id=uuid4(),
        host="here",
        devices=devices or ("cpu",),
        threads=threads,
        versions=versions or {},
        trainer_pid=os.getpid(),
        gpu=gpu,
    )


def take(*devices: str, lease: timedelta = LEASE, gpu: str | None = None) -> Claim | None:
    """Some worker claims the job that has waited longest."""
    with transaction() as session:
        return claims.take_next(session, claimant(*devices, threads=3, versions={"torch": "2"}, gpu=gpu), lease)


def taken(*devices: str) -> Claim:
    """As `take`, where a job waits."""
    found = take(*devices)
    assert found is not None, "no job waits"
    return found


def claim(job_id: Id, lease: timedelta = LEASE) -> Claim:
    """Some worker claims this job, whatever else waits."""
    with transaction() as session:
        return _claim(session, job_id, lease)


def _claim(session: Session, job_id: Id, lease: timedelta) -> Claim:
    before_all = func.least(func.now(), select(func.min(Job.queued_at)).scalar_subquery()) - timedelta(seconds=1)
    session.execute(update(Job).where(Job.id == UUID(str(job_id))).values(queued_at=before_all))
    found = claims.take_next(session, claimant(threads=3, versions={"torch": "2"}), lease)
    assert found is not None, f"job {job_id} isn't in the queue"
    assert found.id == UUID(str(job_id)), f"job {job_id} isn't in the queue, or is held back by its study"
    return found


def held(job_id: Id, work: Callable[[Session, Job], Any]) -> Any:
    """Does the work in a transaction that holds the job's present claim."""
    with transaction() as session:
        job = session.scalars(select(Job).where(Job.id == UUID(str(job_id))).with_for_update()).one()
        assert job.lease_expires_at is not None, f"nobody has a claim on job {job_id}: it is {job.state}"
        return work(session, job)


def fenced(claim: Claim, work: Callable[[Session, Job], Any]) -> Any:
    """Does the work as the attempt of this claim, which is refused where the attempt is over."""
    with transaction() as session:
        return work(session, hold(session, claim))


def succeed(
    job_id: Id, initialization: bytes, metrics: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> None:
    """The trainer has finished."""
    written = blobs.write([initialization])

    def finish(session: Session, job: Job) -> None:
        progress.add_metrics(session, job, metrics or {})
        attempts.succeeded(session, job, written.blob_id, 2_000, iteration=job.iterations)

    held(job_id, finish)


def fail(job_id: Id, reason: str, detail: str) -> None:
    """The run itself has failed."""
    held(job_id, lambda session, job: attempts.failed(session, job, reason, detail))


def stop(job_id: Id) -> None:
    """The trainer has stopped as it was asked to, or since its worker ends."""
    held(job_id, attempts.stopped)


def tell(job_id: Id, **data: Any) -> None:
    """An event of the job's progress, with that data."""
    with transaction() as session:
        events.append(session, UUID(str(job_id)), "progress", data)
        session.get_one(Job, UUID(str(job_id))).iteration = data.get("iteration", 0)


def lapse(job_id: Id) -> None:
    """The job's lease has run out, as it does when nobody renews it."""
    past = func.now() - timedelta(seconds=1)
    with transaction() as session:
        session.execute(update(Job).where(Job.id == UUID(str(job_id))).values(lease_expires_at=past))


# What there is of a job


def job_of(job_id: UUID) -> Job:
    with transaction() as session:
        return session.get_one(Job, job_id)


def attempts_of(job_id: UUID) -> list[Attempt]:
    with transaction() as session:
        return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def events_of(job_id: UUID) -> list[Event]:
    with transaction() as session:
        return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))


def metrics_of(job_id: UUID) -> dict[str, dict[int, float]]:
    with transaction() as session:
        found: dict[str, dict[int, float]] = {}
        for metric in session.scalars(select(Metric).where(Metric.job_id == job_id).order_by(Metric.step)):
            found.setdefault(metric.name, {})[metric.step] = metric.value
        return found


def result_of(job_id: UUID) -> dict[str, str]:
    """The metadata of the job's initialization, which holds the hash of its tensors."""
    job = job_of(job_id)
    assert job.initialization_blob_id is not None
    data = b"".join(blobs.read(job.initialization_blob_id))
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def bits_of(job_id: UUID) -> str:
    """The hash of the tensors that the job has learned."""
    return result_of(job_id)["tensors_sha256"]


# Waiting for it


def wait_for(job_id: UUID, *states: State) -> Job:
    """The job once it is in one of the states; fails as soon as it has ended in another."""

    def reached() -> Job | None:
        job = job_of(job_id)
        assert job.state in states or job.state not in FINAL, f"{job.state}: {job.status_detail}"
        return job if job.state in states else None

    return wait_until(reached)  # type: ignore[return-value]


def wait_for_iteration(job_id: UUID, iteration: int) -> Job:
    def reached() -> Job | None:
        job = job_of(job_id)
        assert job.state not in FINAL, f"it ended too soon: {job.state}, {job.status_detail}"
        return job if job.state == "running" and job.iteration >= iteration else None

    return wait_until(reached)  # type: ignore[return-value]


def undisturbed(job: JobSpec) -> UUID:
    """Such a job that has succeeded at its first attempt."""
    for _ in range(3):  # on a busy machine a lease of seconds may lapse by itself
        job_id = submit(job)
        if wait_for(job_id, "succeeded").attempt == 1:
            return job_id
    pytest.fail("leases lapse though nothing was killed: the machine is too busy")
