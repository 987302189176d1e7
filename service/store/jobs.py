"""Jobs as users see and steer them: submit, find, cancel, pause, resume, delete. Workers' side: `claims`, `attempts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, insert, literal_column, or_, select
from sqlalchemy.orm import Session

from amaml.spec import InitFrom, JobSpec
from service.store import blobs, outbox
from service.store.states import become
from service.store.tables import Attempt, Blob, Checkpoint, Dataset, Event, Job
from service.store.transitions import FINAL, State

CHANNEL: Final = "amaml_job"
"""Notified with a job's id when its worker has something to do about it."""


class BadReference(Exception):
    """The spec names something that the workspace doesn't have. `field` is its path in the spec."""

    def __init__(self, field: tuple[str, ...], detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail


class WrongState(Exception):
    """The job's state doesn't allow what was asked; the sentence names state and remedy."""


class StillNeeded(Exception):
    """Jobs that haven't ended start from this one."""


class Found(NamedTuple):
    """A job, the file it has learned, and the version of the row, which every change of it changes."""

    job: Job
    sha256: str | None
    size_bytes: int | None
    version: str


@dataclass(frozen=True)
class Filter:
    """Which jobs a list shows; None shows all. `tag` is a name, or name:value."""

    state: Sequence[str] | None = None
    family: str | None = None
    method: str | None = None
    tag: str | None = None


# xmin is the transaction that wrote the row's present version: no column to keep up to date, and none to forget.
_VERSION: Final[ColumnElement[str]] = literal_column("jobs.xmin::text").op("||")("-").op("||")(Job.last_seq)


def submit(session: Session, workspace_id: UUID, spec: JobSpec) -> UUID:
    """Queues a job and gives its id; raises BadReference. One transaction: row, first event, wake-up."""
    check_references(session, workspace_id, spec)
    job_id = session.scalars(
        insert(Job)
        .values(
            workspace_id=workspace_id,
            name=spec.name,
            tags=spec.tags,
            spec=spec.model_dump(mode="json"),
            spec_sha256=spec.sha256(),
            family=spec.family.kind,
            method=spec.method.kind,
            device=spec.runtime.device,
            dataset_id=_dataset_id(spec),
            init_from_id=spec.meta.init_from.job if spec.meta.init_from else None,
            iterations=spec.meta.iterations,
            last_seq=1,
        )
        .returning(Job.id)
    ).one()
    first = {"state": "queued", "from": None, "reason": None, "detail": None}
    session.execute(insert(Event).values(job_id=job_id, seq=1, kind="state", data=first))
    outbox.put(session, "wake")
    return job_id


def check_references(session: Session, workspace_id: UUID, spec: JobSpec) -> None:
    """Raises BadReference unless the workspace has all that the spec names; it stays there until the transaction ends."""
    dataset_id = _dataset_id(spec)
    if dataset_id is not None:
        _check_dataset(session, workspace_id, dataset_id)
    if spec.meta.init_from is not None:
        _check_source(session, workspace_id, spec.meta.init_from)


def find(session: Session, workspace_id: UUID, job_id: UUID) -> Found | None:
    row = session.execute(_with_file().where(Job.id == job_id, Job.workspace_id == workspace_id)).one_or_none()
    return Found(*row.tuple()) if row else None


def version(session: Session, workspace_id: UUID, job_id: UUID) -> str | None:
    """The row's version alone."""
    return session.scalar(select(_VERSION).where(Job.id == job_id, Job.workspace_id == workspace_id))


def page(session: Session, workspace_id: UUID, wanted: Filter, before: UUID | None, limit: int) -> list[Found]:
    """The newest jobs that pass the filter, and are older than `before`."""
    query = _with_file().where(Job.workspace_id == workspace_id).order_by(Job.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Job.id < before)
    if wanted.state:
        query = query.where(Job.state.in_(wanted.state))
    if wanted.family is not None:
        query = query.where(Job.family == wanted.family)
    if wanted.method is not None:
        query = query.where(Job.method == wanted.method)
    if wanted.tag is not None:
        query = query.where(_has_tag(wanted.tag))
    return [Found(*row.tuple()) for row in session.execute(query)]


def cancel(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Ends the job: at once while it waits, else as soon as its worker hears of it. Cancelling twice is once.

    False where there is no such job; raises WrongState for one that ended otherwise.
    """
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state in ("queued", "paused"):
        become(session, job, "cancelled", reason="cancelled", detail="Cancelled before it ran to its end.")
    elif job.state in ("running", "pausing"):
        become(session, job, "cancelling")
        _tell_worker(session, job)
    elif job.state not in ("cancelling", "cancelled"):
        raise WrongState(f"The job has {job.state} already: there is nothing left to cancel.")
    return True


def pause(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Stops the job so that it can be resumed: at its next checkpoint, if it runs. As `cancel` otherwise."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state == "queued":
        become(session, job, "paused")
    elif job.state == "running":
        become(session, job, "pausing")
        _tell_worker(session, job)
    elif job.state not in ("pausing", "paused"):
        raise WrongState(f"The job is {job.state}: only a queued or running job can be paused.")
    return True


def resume(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Queues a paused job again, behind those that wait. As `cancel` otherwise."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state == "paused":
        job.queued_at = cast(Any, func.now())
        become(session, job, "queued")
        outbox.put(session, "wake")
    elif job.state not in ("queued", "running"):
        remedy = "wait until it is paused" if job.state == "pausing" else "only a paused job can be resumed"
        raise WrongState(f"The job is {job.state}: {remedy}.")
    return True


def remove(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Deletes an ended job with all that it left; False where there is none; raises WrongState, StillNeeded."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state not in FINAL:
        raise WrongState(f"The job is {job.state}: cancel it, wait until it has ended, then delete it.")
    waiting = select(Job.id).where(Job.init_from_id == job_id, Job.state.not_in(FINAL)).limit(1)
    needed_by = session.scalar(waiting)
    if needed_by is not None:
        raise StillNeeded(f"Job {needed_by} starts from this one and hasn't ended: wait for it, or cancel it first.")
    files = list(session.scalars(select(Checkpoint.blob_id).where(Checkpoint.job_id == job_id)))
    if job.initialization_blob_id is not None:
        files.append(job.initialization_blob_id)
    session.execute(delete(Job).where(Job.id == job_id).execution_options(synchronize_session=False))
    blobs.remove(session, files)
    return True


def attempts(session: Session, job_id: UUID) -> list[Attempt]:
    """All of them, in order."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def checkpoints(session: Session, job_id: UUID) -> list[tuple[Checkpoint, str, int]]:
    """Those that are kept, newest first, with sha256 and size of the file."""
    query = (
        select(Checkpoint, Blob.sha256, Blob.size_bytes)
        .join(Blob, Blob.id == Checkpoint.blob_id)
        .where(Checkpoint.job_id == job_id)
        .order_by(Checkpoint.step.desc())
    )
    return [(checkpoint, sha256 or "", size) for checkpoint, sha256, size in session.execute(query)]


def state(session: Session, job_id: UUID) -> State | None:
    return cast("State | None", session.scalar(select(Job.state).where(Job.id == job_id)))


def counts(session: Session) -> dict[str, int]:
    """How many jobs are in each state that has any, over all workspaces."""
    query = select(Job.state, func.count()).group_by(Job.state)
    return {name: number for name, number in session.execute(query).all()}  # noqa: C416 - rows are no pairs to mypy


def _with_file() -> Select[Job, str | None, int, str]:
    file = select(Job, Blob.sha256, Blob.size_bytes, _VERSION)
    return file.outerjoin(Blob, Blob.id == Job.initialization_blob_id)


def _has_tag(tag: str) -> ColumnElement[bool]:
    name, colon, value = tag.partition(":")
    named = Job.tags.has_key(tag)
    return or_(named, Job.tags.contains({name: value})) if colon else named


def _locked(session: Session, workspace_id: UUID, job_id: UUID) -> Job | None:
    return session.scalars(
        select(Job).where(Job.id == job_id, Job.workspace_id == workspace_id).with_for_update()
    ).one_or_none()


def _tell_worker(session: Session, job: Job) -> None:
    session.execute(select(func.pg_notify(CHANNEL, str(job.id))))


def _dataset_id(spec: JobSpec) -> UUID | None:
    return getattr(spec.family, "dataset", None)


def _check_dataset(session: Session, workspace_id: UUID, dataset_id: UUID) -> None:
    # The lock keeps the data set there until the job's row, which then keeps it, is committed.
    found = session.scalar(
        select(Dataset.id)
        .where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
        .with_for_update(read=True, key_share=True)
    )
    if found is None:
        raise BadReference(
            ("family", "dataset"),
            f"{dataset_id} is no data set of this workspace: upload one with POST /v1/datasets and use its id",
        )


def _check_source(session: Session, workspace_id: UUID, source: InitFrom) -> None:
    job = session.scalars(
        select(Job)
        .where(Job.id == source.job, Job.workspace_id == workspace_id)
        .with_for_update(read=True, key_share=True)
    ).one_or_none()
    if job is None:
        raise BadReference(("meta", "init_from", "job"), f"{source.job} is no job of this workspace")
    if source.step is None:
        if job.initialization_blob_id is None:
            raise BadReference(
                ("meta", "init_from", "job"),
                f"job {job.id} is {job.state} and has no initialization: name one that succeeded, or a checkpoint's step",
            )
        return
    steps = [checkpoint.step for checkpoint, _, _ in checkpoints(session, job.id)]
    if source.step not in steps:
        kept = ", ".join(map(str, sorted(steps))) or "none"
        raise BadReference(
            ("meta", "init_from", "step"),
            f"job {job.id} has no checkpoint at step {source.step}: choose one that is kept ({kept}), or null",
        )
