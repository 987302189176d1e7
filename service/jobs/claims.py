"""A worker's claim on a job, which is taken from the leased queue of jobs.

The fence is the attempt's number. Every write calls `hold` first in its transaction, which locks the job's row and refuses the
claim if the attempt is over: its lease has lapsed and the job was queued again, or another attempt runs by now.
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
    """The worker that wants a job."""

    id: UUID
    host: str
    devices: Collection[str]
    """What it can run on: cpu, or cpu and cuda."""
    threads: int
    """The number of threads for a job that names none."""
    versions: Mapping[str, str]
    """Versions of the libraries that compute."""
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
    Device, threads and versions, on which the bits of a result depend, are those of the first attempt since the latest start
    without a checkpoint.
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

    As long as a worker without a GPU is running, jobs for the CPU are left to such workers, so that no GPU is kept idle by one.
    """
    leaves_cpu_jobs = "cuda" in devices and _some_worker_is_without_a_gpu(session)
    return ["auto", *(device for device in devices if not (device == "cpu" and leaves_cpu_jobs))]


def _some_worker_is_without_a_gpu(session: Session) -> bool:
    running = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, ~Worker.devices.contains(["cuda"]))
    return bool(session.scalar(select(running)))


def _fits(devices: Collection[str], gpus: Collection[str] | None) -> ColumnElement[bool]:
    """The job needs one of these devices and, if it must be resumed on a certain model of GPU, one of `gpus` (None: any)."""
    if gpus is None:
        return Job.device.in_(devices)
    return and_(Job.device.in_(devices), or_(Job.gpu.is_(None), Job.gpu.in_(gpus)))


def _next(session: Session, fits: ColumnElement[bool]) -> Job | None:
    """The job to claim, locked. Jobs of a workspace that runs as many as its quota allows are passed over."""
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
        # Between the two queries another worker has claimed the last job that the quota allows.
        passed_over.append(job.workspace_id)


def asked_runtime(job: Job) -> RuntimeSpec:
    """The part `runtime` of the job's spec, read alone: a spec whose family this process doesn't know must not fail the queue."""
    return RuntimeSpec.model_validate(job.spec["runtime"])


def newest_checkpoint(session: Session, job_id: UUID) -> Checkpoint | None:
    """The committed checkpoint from which the next attempt resumes."""
    newest = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()).limit(1)
    return session.scalars(newest).first()


def hold(session: Session, claim: Claim) -> Job:
    """The claim's job, locked until the transaction ends; raises StaleFence if the attempt is over."""
    job = QUEUE.hold(session, claim)
    if job is None:
        raise StaleFence(claim)
    return job


def read_state(session: Session, claim: Claim) -> State:
    """The state of the claim's job (running, or what a user has requested meanwhile), without a lock; raises StaleFence."""
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
    """The conditions of the index ix_jobs_queue: jobs that a study holds back are no part of it."""
    return QUEUE.waits(), ~Job.held


def _data_are_checked() -> ColumnElement[bool]:
    """The job reads no data set, or one that has been checked. If that is invalid, the job will fail with the reason."""
    pending = select(Dataset.id).where(Dataset.id == Job.dataset_id, Dataset.state == "pending")
    return or_(Job.dataset_id.is_(None), ~pending.exists())


def explain_missing_device(session: Session, cuda: bool, gpus: Collection[str] = ()) -> None:
    """Sets the status of queued jobs that wait because no running worker has their device, and clears it once one has.

    `cuda`: whether any worker has a CUDA device. `gpus`: the models of GPU that there are, one of which a job that is to be
    resumed from a checkpoint may need.
    """
    other = and_(Job.gpu.is_not(None), Job.gpu.not_in(gpus))
    none = Job.gpu.is_(None) if not cuda else false()
    jobs = update(Job).where(Job.state == "queued", Job.device == "cuda").execution_options(synchronize_session=False)
    reason = func.coalesce(Job.status_reason, "")
    session.execute(
        jobs.where(reason.in_([NO_CUDA_WORKER, NO_SUCH_GPU]), ~or_(none, other)).values(
            status_reason=None, status_detail=None
        )
    )
    session.execute(
        jobs.where(~Job.held, none, reason.not_in([PENDING, NO_CUDA_WORKER])).values(
            status_reason=NO_CUDA_WORKER,
            status_detail="No worker with a CUDA device is running: start one, "
            "or cancel the job and submit it with runtime.device cpu or auto.",
        )
    )
    session.execute(
        jobs.where(~Job.held, other, reason.not_in([PENDING, NO_SUCH_GPU])).values(
            status_reason=NO_SUCH_GPU,
            status_detail=literal("Its checkpoint was written on a GPU of the model ")
            + Job.gpu
            + ", on others it would end in other bits, and no worker with one is running: start one, or cancel the job and "
            "submit another that starts from the checkpoint (meta.init_from).",
        )
    )
