"""Queries on jobs for users' requests: submit, find, cancel, pause, resume, extend, delete. Those of workers are in `claims` and
`attempts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, insert, literal_column, or_, select
from sqlalchemy.orm import Session, defer

from amaml.dataset_format import readers
from amaml.families.spec import uploaded_dataset
from amaml.spec import InitFrom, JobSpec
from service.adaptations.tables import Adaptation
from service.core import blobs, outbox, quotas
from service.core.refusals import BadReference, InUse, WrongState
from service.core.tables import Blob
from service.datasets.tables import Dataset
from service.jobs import progress
from service.jobs.estimate import expected_seconds
from service.jobs.reasons import PENDING, PENDING_DETAIL, TURN, TURN_DETAIL
from service.jobs.states import become
from service.jobs.tables import Attempt, Checkpoint, Event, Job
from service.jobs.transitions import FINAL, State


class Found(NamedTuple):
    """A job, its initialization's file, and the version of its row, which every change of the row changes."""

    job: Job
    sha256: str | None
    size_bytes: int | None
    version: str


@dataclass(frozen=True)
class Filter:
    """Which jobs a list shows; None: all. `tag` is a name or name:value; `study` is a study's id."""

    state: Sequence[str] | None = None
    family: str | None = None
    method: str | None = None
    tag: str | None = None
    study: UUID | None = None


# xmin is the transaction that wrote the row's present version, so no column has to be kept up to date for this.
_VERSION: Final[ColumnElement[str]] = literal_column("jobs.xmin::text").op("||")("-").op("||")(Job.last_seq)


def submit(session: Session, workspace_id: UUID, spec: JobSpec) -> Job:
    """Queues a job: writes its row, its first event and a message that wakes a worker. Raises BadReference, quotas.Exceeded."""
    waits = check_references(session, workspace_id, spec)
    (job,) = insert_queued(session, [queued_row(workspace_id, spec, waits)])
    outbox.put(session, "wake")
    return job


def queued_row(workspace_id: UUID, spec: JobSpec, waits_for_data: bool) -> dict[str, Any]:
    """The columns of a new job."""
    return {
        "workspace_id": workspace_id,
        "name": spec.name,
        "tags": spec.tags,
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": spec.sha256(),
        "family": spec.family.kind,
        "method": spec.method.kind,
        "device": spec.runtime.device,
        "dataset_id": _dataset_id(spec),
        "init_from_id": spec.meta.init_from.job if spec.meta.init_from else None,
        "estimated_seconds": expected_seconds(spec),
        "iterations": spec.meta.iterations,
        "status_reason": PENDING if waits_for_data else None,
        "status_detail": PENDING_DETAIL if waits_for_data else None,
        "last_seq": 1,
    }


def insert_queued(session: Session, rows: Sequence[Mapping[str, Any]]) -> Sequence[Job]:
    """Writes a workspace's new jobs with their first events and returns them in order; raises quotas.Exceeded.

    The caller wakes workers.
    """
    quotas.admit(session, rows[0]["workspace_id"], len(rows), sum(row["estimated_seconds"] or 0.0 for row in rows))
    jobs = session.scalars(insert(Job).returning(Job, sort_by_parameter_order=True), list(rows)).all()
    first = {"state": "queued", "from": None, "reason": None, "detail": None}
    session.execute(insert(Event), [{"job_id": job.id, "seq": 1, "kind": "state", "data": first} for job in jobs])
    return jobs


def check_references(session: Session, workspace_id: UUID, spec: JobSpec) -> bool:
    """Whether the job will have to wait for the check of its data set.

    Raises BadReference unless the workspace has everything that the spec names. It can't be deleted before the transaction ends.
    """
    dataset_id = _dataset_id(spec)
    waits = dataset_id is not None and _check_dataset(session, workspace_id, dataset_id, spec.family.kind)
    if spec.meta.init_from is not None:
        _check_source(session, workspace_id, spec.meta.init_from)
    return waits


def find(session: Session, workspace_id: UUID, job_id: UUID) -> Found | None:
    row = session.execute(_with_file().where(Job.id == job_id, Job.workspace_id == workspace_id)).one_or_none()
    return Found(*row) if row else None


def version(session: Session, workspace_id: UUID, job_id: UUID) -> str | None:
    """The row's version alone."""
    return session.scalar(select(_VERSION).where(Job.id == job_id, Job.workspace_id == workspace_id))


def page(session: Session, workspace_id: UUID, wanted: Filter, before: UUID | None, limit: int) -> list[Found]:
    """The newest jobs that pass the filter and are older than `before`."""
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
    if wanted.study is not None:
        query = query.where(Job.study_id == wanted.study)
    return [Found(*row) for row in session.execute(query)]


def cancel(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Ends the job: at once while it waits, else as soon as its worker reads the request. Cancelling it again changes nothing.

    False if there is no such job; raises WrongState for one that has ended otherwise.
    """
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state in ("queued", "paused"):
        become(session, job, "cancelled", reason="cancelled", detail="Cancelled before it ran to its end.")
    elif job.state in ("running", "pausing"):
        become(session, job, "cancelling")
    elif job.state not in ("cancelling", "cancelled"):
        raise WrongState(f"The job has {job.state} already: there is nothing left to cancel.")
    return True


def pause(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Stops the job so that it can be resumed; if it runs, at its next checkpoint. Result and errors as in `cancel`."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state == "queued":
        become(session, job, "paused")
    elif job.state == "running":
        become(session, job, "pausing")
    elif job.state not in ("pausing", "paused"):
        raise WrongState(f"The job is {job.state}: only a queued or running job can be paused.")
    return True


def resume(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Queues a paused job again, behind those that wait. Result and errors as in `cancel`."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state == "paused":
        job.queued_at = cast(Any, func.now())
        # A study's job waits for its turn: by now another job of the study runs in its place.
        job.held = job.study_id is not None
        reason, detail = (TURN, TURN_DETAIL) if job.held else (None, None)
        become(session, job, "queued", reason=reason, detail=detail)
        outbox.put(session, "wake")
    elif job.state not in ("queued", "running"):
        remedy = "wait until it is paused" if job.state == "pausing" else "only a paused job can be resumed"
        raise WrongState(f"The job is {job.state}: {remedy}.")
    return True


def extend(session: Session, workspace_id: UUID, job_id: UUID, spec: JobSpec) -> bool:
    """Queues a succeeded job again with a longer spec. It continues from its newest checkpoint before the end: the end's is
    dropped, because a longer run would not have evaluated there. Its initialization stays until the longer run has succeeded.

    Result and errors as in `cancel`, and BadReference, quotas.Exceeded, InUse. Extending it again to the same length changes
    nothing.
    """
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.spec_sha256 == spec.sha256() and job.state not in FINAL:
        return True
    if job.state != "succeeded":
        raise WrongState(f"The job is {job.state}: only one that succeeded can be extended.")
    if job.iterations >= spec.meta.iterations:
        raise WrongState(f"The job has {job.iterations} meta-iterations already: name more than that, in all.")
    if job.study_id is not None:
        raise InUse(f"It is a cell of study {job.study_id}, which compares jobs of equal length: submit its spec anew.")
    if job.iteration < job.iterations:
        raise WrongState(
            f"The job ended by itself after {job.iteration} of {job.iterations} meta-iterations: more change nothing."
        )
    check_references(session, workspace_id, spec)
    _check_nothing_starts_from_its_end(session, job)
    progress.forget_end(session, job)
    rest = (expected_seconds(spec) or 0.0) * (1 - job.iterations / spec.meta.iterations)
    quotas.admit(session, workspace_id, 1, rest)
    job.spec, job.spec_sha256 = spec.model_dump(mode="json"), spec.sha256()
    job.iterations, job.estimated_seconds = spec.meta.iterations, rest or None
    job.queued_at = cast(Any, func.now())
    become(session, job, "queued", reason="extended", detail=f"It goes on to {job.iterations} meta-iterations.")
    outbox.put(session, "wake")
    return True


def _check_nothing_starts_from_its_end(session: Session, job: Job) -> None:
    """Raises InUse if an unfinished job starts from this job's end, which is about to be replaced."""
    step = Job.spec["meta"]["init_from"]["step"].as_integer()  # within JSONB: the condition is the database's
    starts = select(Job.id).where(
        Job.init_from_id == job.id, Job.state.not_in(FINAL), or_(step.is_(None), step >= job.iterations)
    )
    needed = session.scalar(starts.limit(1))
    if needed is not None:
        raise InUse(f"Job {needed} starts from its end and hasn't ended: wait for it, or cancel it first.")


def remove(session: Session, workspace_id: UUID, job_id: UUID) -> bool:
    """Deletes an ended job with all its results; False if there is no such job. Raises WrongState, InUse."""
    job = _locked(session, workspace_id, job_id)
    if job is None:
        return False
    if job.state not in FINAL:
        raise WrongState(f"The job is {job.state}: cancel it, wait until it has ended, then delete it.")
    if job.study_id is not None:
        raise InUse(f"It is a cell of study {job.study_id}: delete the study, and its jobs go with it.")
    remove_ended(session, Job.id == job_id)
    return True


def remove_ended(session: Session, which: ColumnElement[bool]) -> None:
    """Deletes these ended jobs with their files; raises InUse if unfinished jobs start from one of them."""
    wanted = select(Job.id).where(which).scalar_subquery()
    waiting = select(Job.id, Job.init_from_id).where(Job.init_from_id.in_(wanted), Job.state.not_in(FINAL)).limit(1)
    needed = session.execute(waiting).one_or_none()
    if needed is not None:
        raise InUse(f"Job {needed[0]} starts from {needed[1]} and hasn't ended: wait for it, or cancel it first.")
    files = list(session.scalars(select(Checkpoint.blob_id).where(Checkpoint.job_id.in_(wanted))))
    files += session.scalars(
        select(Adaptation.weights_blob_id).where(Adaptation.job_id.in_(wanted), Adaptation.weights_blob_id.is_not(None))
    )
    own = select(Job.initialization_blob_id).where(which, Job.initialization_blob_id.is_not(None))
    files += [one for one in session.scalars(own) if one is not None]
    session.execute(delete(Job).where(which).execution_options(synchronize_session=False))
    blobs.remove(session, files)


def attempts(session: Session, job_id: UUID, after: int, limit: int) -> list[Attempt]:
    """The attempts after number `after`, in order."""
    query = select(Attempt).where(Attempt.job_id == job_id, Attempt.number > after)
    return list(session.scalars(query.order_by(Attempt.number).limit(limit)))


def checkpoints(session: Session, job_id: UUID) -> list[tuple[Checkpoint, str, int]]:
    """The checkpoints that are kept, newest first, each with its file's sha256 and size."""
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
    """State → number of jobs in it, over all workspaces; states without jobs are left out."""
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


def _dataset_id(spec: JobSpec) -> UUID | None:
    return uploaded_dataset(getattr(spec.family, "dataset", None))


def _check_dataset(session: Session, workspace_id: UUID, dataset_id: UUID, family: str) -> bool:
    """Whether the data set still waits for its check; raises BadReference if there is none that the family can read."""
    # The lock keeps the data set from being deleted until the job's row, which then does so, is committed.
    dataset = session.scalars(
        select(Dataset)
        .where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
        .options(defer(Dataset.report))
        .with_for_update(read=True, key_share=True)
    ).one_or_none()
    field = ("family", "dataset")
    if dataset is None:
        raise BadReference(
            field, f"{dataset_id} is no data set of this workspace: upload one with POST /v1/datasets and use its id"
        )
    if dataset.state == "invalid":
        raise BadReference(
            field, f"data set {dataset_id} is invalid: {dataset.status_detail} Upload a corrected file and use its id"
        )
    reader = readers().get(family)
    if reader is not None and family not in dataset.families:
        raise BadReference(
            field,
            f"family {family} can't read data set {dataset_id}, which is {dataset.format} (read by "
            f"{', '.join(dataset.families)}): {family} reads files that begin with {', or with '.join(reader.FORMATS.values())}",
        )
    return dataset.state == "pending"


def _check_source(session: Session, workspace_id: UUID, source: InitFrom) -> None:
    job = session.scalars(
        select(Job)
        .where(Job.id == source.job, Job.workspace_id == workspace_id)
        .with_for_update(read=True, key_share=True)
    ).one_or_none()
    if job is None:
        raise BadReference(("meta", "init_from", "job"), f"{source.job} is no job of this workspace")
    if source.step is None:
        if job.initialization_blob_id is None or job.state not in FINAL:
            raise BadReference(
                ("meta", "init_from", "job"),
                f"job {job.id} is {job.state} and has no initialization to keep: name one that succeeded, or a checkpoint's step",
            )
        return
    steps = [checkpoint.step for checkpoint, _, _ in checkpoints(session, job.id)]
    if source.step not in steps:
        kept = ", ".join(map(str, sorted(steps))) or "none"
        raise BadReference(
            ("meta", "init_from", "step"),
            f"job {job.id} has no checkpoint at step {source.step}: choose one that is kept ({kept}), or null",
        )
