"""The parameters that a job starts from, if its spec names another job."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from service.jobs.tables import Checkpoint, Job


def initialization_blob(session: Session, job_id: UUID, source_id: UUID, step: int | None) -> UUID | None:
    """The blob of the checkpoint at `step` of job `source_id`, or of its initialization if `step` is None. The two jobs must be
    of the same workspace. None if there is no such file, or no longer."""
    own = aliased(Job)
    source = select(Job.initialization_blob_id).join(own, own.workspace_id == Job.workspace_id)
    if step is not None:
        source = (
            select(Checkpoint.blob_id)
            .join(Job, Job.id == Checkpoint.job_id)
            .join(own, own.workspace_id == Job.workspace_id)
            .where(Checkpoint.step == step)
        )
    return session.scalar(source.where(Job.id == source_id, own.id == job_id))
