"""Data sets: immutable files, known by content within a workspace."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.store import blobs
from service.store.tables import Dataset, Job
from service.store.transitions import FINAL


class StillUsed(Exception):
    """Jobs that haven't ended read the data set."""


class Added(NamedTuple):
    dataset: Dataset
    fresh: bool
    """False: the workspace had the same bytes in the same format already, and that data set is the one."""


def add(
    session: Session,
    workspace_id: UUID,
    file: blobs.Written,
    *,
    name: str,
    file_format: str,
    rows: int,
    tasks: int,
) -> Added:
    """Makes the file a data set of the workspace."""
    new_id = session.scalar(
        insert(Dataset)
        .values(
            workspace_id=workspace_id,
            name=name,
            format=file_format,
            sha256=file.sha256,
            bytes=file.size,
            rows=rows,
            tasks=tasks,
            state="ready",
            blob_id=file.blob_id,
        )
        .on_conflict_do_nothing()
        .returning(Dataset.id)
    )
    same = (Dataset.workspace_id == workspace_id, Dataset.sha256 == file.sha256, Dataset.format == file_format)
    dataset = session.scalars(select(Dataset).where(*same)).one()
    return Added(dataset, new_id is not None)


def find(session: Session, workspace_id: UUID, dataset_id: UUID) -> Dataset | None:
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
    return session.scalars(query).one_or_none()


def page(session: Session, workspace_id: UUID, before: UUID | None, limit: int) -> list[Dataset]:
    """The newest, older than `before`."""
    query = select(Dataset).where(Dataset.workspace_id == workspace_id).order_by(Dataset.id.desc()).limit(limit)
    return list(session.scalars(query.where(Dataset.id < before) if before else query))


def remove(session: Session, workspace_id: UUID, dataset_id: UUID) -> bool:
    """Deletes it with its file; False where there is none; raises StillUsed."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.workspace_id == workspace_id)
    dataset = session.scalars(query.with_for_update()).one_or_none()
    if dataset is None:
        return False
    reader = session.scalar(select(Job.id).where(Job.dataset_id == dataset_id, Job.state.not_in(FINAL)).limit(1))
    if reader is not None:
        raise StillUsed(f"Job {reader} reads this data set and hasn't ended: wait for it, or cancel it first.")
    session.delete(dataset)
    session.flush()
    blobs.remove(session, [dataset.blob_id])
    return True
