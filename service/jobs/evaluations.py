"""The results of a job's evaluations, task by task."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.tables import Evaluation


def page(session: Session, job_id: UUID, before: int | None, limit: int) -> list[Evaluation]:
    """The evaluations at steps below `before`, the latest first."""
    query = select(Evaluation).where(Evaluation.job_id == job_id).order_by(Evaluation.step.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(Evaluation.step < before)))
