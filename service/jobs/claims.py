"""A worker's claim on a job, which is taken from the leased queue of jobs.

The fence is the attempt's number. A write is preceded by `hold` in its transaction, which locks the job's row and
refuses the claim if the attempt is over: its lease lapsed and the job was queued again, or another attempt runs by now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, false, func, literal, or_, select, update
from sqlalchemy.orm import Session, defer

from amaml.spec import RuntimeSpec
from service.core import quotas
from service.core.leased_queue import Held, LeasedQueue
from service.datasets.tables import Dataset
from service.jobs.reasons import NO_CUDA_WORKER, NO_SUCH_GPU, PENDING
from service.jobs.states import become
from service.jobs.tables import Attempt, Checkpoint, Job
from service.jobs.transitions import JOB, LEASED, State
from service.workers.tables import LIVE_WITHIN, Worker

QUEUE: Final = LeasedQueue(Job, JOB, defer(Job.spec))


@dataclass(frozen=True)
class Claimant:
    """The worker that asks for a job."""

    id: UUID
    host: str
    devices: Collection[str]
    """What it can run on: cpu, or cpu and cuda."""
    threads: int
    """Of a job that names no number."""
    versions: Mapping[str, str]
    """Of the libraries that compute."""
    trainer_pid: int
    """The process that will run the job."""
    gpu: str | None = None
    """The model of its GPU, where it has one."""


@dataclass(frozen=True)
class Claim(Held):
    """The right to run one attempt of a job, and what that attempt needs to know."""

    spec: dict[str, Any]
    """As it is stored; the supervisor makes a JobSpec of it, and fails the job where that can't be done."""
    study_id: UUID | None
    runtime: dict[str, Any]
    """`device`, `threads` and `versions` that the attempt is to run with."""
    checkpoint: tuple[int, UUID] | None
    """Step and blob of the newest committed checkpoint."""


class StaleFence(Exception):
    """The attempt is over: whoever ran it must stop, and none of its writes is taken any more."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"attempt {claim.attempt} of job {claim.id} is over: another may have taken the job")


def take_next(session: Session, worker: Claimant, lease: timedelta) -> Claim | None:
    """Claims the job that has waited longest among those which the worker can run; None if there is none.

    Jobs that another worker is claiming at the same moment are passed over, so no two workers get the same one.
    What the bits of a result depend on is settled by the first attempt, and anew by each that starts from nothing.
    """
    job = _next(session, _fits(may_claim(session, worker.devices), [worker.gpu] if worker.gpu else []))
    if job is None:
        return None
    checkpoint = newest_checkpoint(session, job.id)
    QUEUE.take(job, lease)
    job.worker_id = worker.id
    job.progress_at = func.now()
    job.started_at = func.coalesce(Job.started_at, func.now())
    job.phase = "starting"
    job.iteration = checkpoint.step if checkpoint else 0
    if checkpoint is None:
        asked = asked_runtime(job)
        device = ("cuda" if "cuda" in worker.devices else "cpu") if asked.device == "auto" else asked.device
        job.device, job.gpu = device, worker.gpu if device == "cuda" else None
        job.runtime = {
            "device": device,
            "threads": asked.threads or worker.threads,
            "versions": dict(worker.versions),
        }
    session.add(
        Attempt(
            job_id=job.id, number=job.attempt, worker_id=worker.id, host=worker.host, trainer_pid=worker.trainer_pid
        )
    )  # fmt: skip
    become(session, job, "running")
    return Claim(
        id=job.id,
        attempt=job.attempt,
        spec=job.spec,
        study_id=job.study_id,
        runtime=job.runtime or {},
        checkpoint=(checkpoint.step, checkpoint.blob_id) if checkpoint else None,
    )


def may_claim(session: Session, devices: Collection[str]) -> list[str]:
    """The kinds of job, by their device, that a worker with these devices takes.

    Jobs for the CPU are left to workers without a GPU as long as one lives, so that no GPU stands still behind one of them.
    """
    leaves_cpu_jobs = "cuda" in devices and _some_worker_is_without_a_gpu(session)
    return ["auto", *(device for device in devices if not (device == "cpu" and leaves_cpu_jobs))]


def _some_worker_is_without_a_gpu(session: Session) -> bool:
    living = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, ~Worker.devices.contains(["cuda"]))
    return bool(session.scalar(select(living)))


def _fits(devices: Collection[str], gpus: Collection[str] | None) -> ColumnElement[bool]:
    """The job is of one of these kinds and, where it is to be resumed on a model of GPU, on one of these (None: on any)."""
    if gpus is None:
        return Job.device.in_(devices)
    return and_(Job.device.in_(devices), or_(Job.gpu.is_(None), Job.gpu.in_(gpus)))


def _next(session: Session, fits: ColumnElement[bool]) -> Job | None:
    """The job to claim, locked. Jobs of a workspace of which as many run as its quota allows stay where they are."""
    passed_over: list[UUID] = []
    while True:
        found = QUEUE.lock_next(
            session,
            select(Job)
            .where(
                *_in_the_queue(), Job.queued_at <= func.now(), fits, _data_are_checked(),
                Job.workspace_id.not_in(quotas.full()), Job.workspace_id.not_in(passed_over),
            )
            .order_by(Job.queued_at, Job.id),
        )  # fmt: skip
        if found is None:
            return None
        job: Job = found[0]
        bound = quotas.running_bound(session, job.workspace_id)
        if bound is None or quotas.may_run_another(session, job.workspace_id, bound):
            return job
        # Another worker has claimed the last one that may run, between the two looks.
        passed_over.append(job.workspace_id)


def asked_runtime(job: Job) -> RuntimeSpec:
    """The part `runtime` of the job's spec, read alone: a spec whose family this process doesn't know must not fail the queue."""
    return RuntimeSpec.model_validate(job.spec["runtime"])


def newest_checkpoint(session: Session, job_id: UUID) -> Checkpoint | None:
    """The committed checkpoint that a next attempt resumes from."""
    newest = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()).limit(1)
    return session.scalars(newest).first()


def hold(session: Session, claim: Claim) -> Job:
    """The claim's job, locked until the transaction ends; raises StaleFence if the attempt is over."""
    job = QUEUE.hold(session, claim)
    if job is None:
        raise StaleFence(claim)
    return job


def look(session: Session, claim: Claim) -> State:
    """The state of the claim's job (running, or what a user asked for meanwhile), without a lock; raises StaleFence."""
    state = session.scalar(
        select(Job.state).where(Job.id == claim.id, Job.attempt == claim.attempt, Job.state.in_(LEASED))
    )
    if state is None:
        raise StaleFence(claim)
    return cast(State, state)


def some_wait(
    session: Session, at_least: timedelta, devices: Collection[str], gpus: Collection[str] | None = None
) -> bool:
    """Whether a job for one of these devices (and, where they are named, models of GPU) has been due in the queue for that
    long, and may run."""
    due = select(Job.id).where(
        *_in_the_queue(), Job.queued_at < func.now() - at_least, _fits(devices, gpus), _data_are_checked(),
        Job.workspace_id.not_in(quotas.full()),
    )  # fmt: skip
    return session.scalar(due.limit(1)) is not None


def _in_the_queue() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """As the index ix_jobs_queue has it: what a study holds back isn't even looked at."""
    return QUEUE.waits(), ~Job.held


def _data_are_checked() -> ColumnElement[bool]:
    """The job's data set, if it reads one, waits for its check no more; what an invalid one means is told when it runs."""
    pending = select(Dataset.id).where(Dataset.id == Job.dataset_id, Dataset.state == "pending")
    return or_(Job.dataset_id.is_(None), ~pending.exists())


def explain_missing_device(session: Session, cuda: bool, gpus: Collection[str] = ()) -> None:
    """Says to queued jobs why they wait where no worker has the device: CUDA at all (`cuda` False), or the model of GPU that
    their checkpoints are of (`gpus` are those that there are). Unsays it where one has."""
    other = and_(Job.gpu.is_not(None), Job.gpu.not_in(gpus))
    none = Job.gpu.is_(None) if not cuda else false()
    jobs = update(Job).where(Job.state == "queued", Job.device == "cuda").execution_options(synchronize_session=False)
    told = func.coalesce(Job.status_reason, "")
    session.execute(
        jobs.where(told.in_([NO_CUDA_WORKER, NO_SUCH_GPU]), ~or_(none, other)).values(
            status_reason=None, status_detail=None
        )
    )
    session.execute(
        jobs.where(~Job.held, none, told.not_in([PENDING, NO_CUDA_WORKER])).values(
            status_reason=NO_CUDA_WORKER,
            status_detail="No worker with a CUDA device is running: start one, "
            "or cancel the job and submit it with runtime.device cpu or auto.",
        )
    )
    session.execute(
        jobs.where(~Job.held, other, told.not_in([PENDING, NO_SUCH_GPU])).values(
            status_reason=NO_SUCH_GPU,
            status_detail=literal("Its checkpoint was written on a GPU of the model ")
            + Job.gpu
            + ", on others it would end in other bits, and no worker with one is running: start one, or cancel the job and "
            "submit another that starts from the checkpoint (meta.init_from).",
        )
    )
