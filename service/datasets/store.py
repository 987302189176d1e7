"""Queries on data sets: immutable files, identified by content within a workspace, numbered within their name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, defer

from amaml.dataset_format import Detected
from service.core import blobs, quotas
from service.core.database import notify_after_commit
from service.core.notifications import WORK
from service.core.refusals import InUse
from service.datasets import checks as dataset_checks
from service.datasets.tables import Dataset
from service.jobs.tables import Job
from service.jobs.transitions import FINAL


class Added(NamedTuple):
    dataset: Dataset
    fresh: bool
    """False: the workspace had the same bytes in the same format already, and that data set is the one."""


@dataclass(frozen=True)
class Filter:
    """Which data sets a list shows; None: all."""

    state: str | None = None
    name: str | None = None
    format: str | None = None
    family: str | None = None


def add(session: Session, workspace_id: UUID, file: blobs.Written, detected: Detected, name: str) -> Added:
    """Makes the file a data set of the workspace, to be checked by a worker; raises quotas.Exceeded.

    If the workspace has a data set of the same bytes, it is that one. If that is invalid without a report, its check was
    interrupted by something other than the file, so the file is checked again.
    """
    if name:
        # Serializes uploads of this name in the workspace, as the next version is one more than the latest.
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{workspace_id} {name}", 0))))
    latest = func.coalesce(func.max(Dataset.version), 0)
    version = select(latest + 1).where(Dataset.workspace_id == workspace_id, Dataset.name == name).scalar_subquery()
    new_id = session.scalar(
        insert(Dataset)
        .values(
            workspace_id=workspace_id,
            name=name,
            version=version if name else 1,
            format=detected.format,
            families=list(detected.families),
            sha256=file.sha256,
            bytes=file.size,
            blob_id=file.blob_id,
        )
        .on_conflict_do_nothing(index_elements=[Dataset.workspace_id, Dataset.sha256, Dataset.format])
        .returning(Dataset.id)
    )
    if new_id is not None:
        quotas.check_stored(session, workspace_id, file.size)
        notify_after_commit(session, WORK, "data sets")
    same = (Dataset.workspace_id == workspace_id, Dataset.sha256 == file.sha256, Dataset.format == detected.format)
    # Locked, so that only one of several uploads at once requests the check again. Jobs may still refer to it meanwhile.
    locked = select(Dataset).where(*same).with_for_update(key_share=True)
    dataset = session.scalars(locked).one_or_none()
    if dataset is None:  # it was deleted between the two statements
        return add(session, workspace_id, file, detected, name)
    if dataset.state == "invalid" and dataset.report is None:
        dataset_checks.begin_anew(session, dataset)
    dataset.families = list(detected.families)  # those of a package that was installed since may read it too
    return Added(dataset, new_id is not None)


def find(session: Session, workspace_id: UUID, dataset_id: UUID) -> Dataset | None:
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
    return session.scalars(query).one_or_none()


def page(session: Session, workspace_id: UUID, wanted: Filter, before: UUID | None, limit: int) -> list[Dataset]:
    """The newest data sets that pass the filter and are older than `before`, without their reports."""
    query = select(Dataset).where(Dataset.workspace_id == workspace_id).options(defer(Dataset.report, raiseload=True))
    if before is not None:
        query = query.where(Dataset.id < before)
    for column, value in ((Dataset.state, wanted.state), (Dataset.name, wanted.name), (Dataset.format, wanted.format)):
        if value is not None:
            query = query.where(column == value)
    if wanted.family is not None:
        query = query.where(Dataset.families.contains([wanted.family]))
    return list(session.scalars(query.order_by(Dataset.id.desc()).limit(limit)))


def is_checked(session: Session, dataset_id: UUID) -> bool:
    """Whether it has been checked; also true if it was deleted."""
    return session.scalar(select(Dataset.state).where(Dataset.id == dataset_id)) != "pending"


def remove(session: Session, workspace_id: UUID, dataset_id: UUID) -> bool:
    """Deletes it with its file; False if there is no such data set. Raises InUse."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
    dataset = session.scalars(query.with_for_update()).one_or_none()
    if dataset is None:
        return False
    reader = session.scalar(select(Job.id).where(Job.dataset_id == dataset_id, Job.state.not_in(FINAL)).limit(1))
    if reader is not None:
        raise InUse(f"Job {reader} reads this data set and hasn't ended: wait for it, or cancel it first.")
    session.delete(dataset)
    session.flush()
    blobs.remove(session, [dataset.blob_id])
    return True
