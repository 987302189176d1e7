"""Studies whose cells are seeds of a small job, and what becomes of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select

from service.core.database import transaction
from service.jobs.tables import Job
from service.studies import store as studies
from service.studies.store import NewCell
from service.studies.tables import Study
from tests.support.audit import violations
from tests.support.jobs import spec, workspace
from tests.support.waiting import wait_until


def submit_study(cells: int, iterations: int = 20, *, concurrency: int = 2, **changes: Any) -> UUID:
    """A study of so many seeds."""
    specs = [spec(iterations, seed=seed, **changes) for seed in range(cells)]
    workspace_id = workspace()
    with transaction() as session:
        grid = {"/runtime/seed": list(range(cells))}
        new = [NewCell({"/runtime/seed": seed}, one) for seed, one in enumerate(specs)]
        return studies.submit(session, workspace_id, "a study", {}, grid, concurrency, new)


def study_of(study_id: UUID) -> Study:
    with transaction() as session:
        return session.get_one(Study, study_id)


def jobs_of(study_id: UUID) -> list[Job]:
    with transaction() as session:
        return list(session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.cell_number)))


def wait_for_end(study_id: UUID, state: str = "finished") -> None:
    wait_until(lambda: study_of(study_id).state in ("finished", "cancelled"))
    assert study_of(study_id).state == state
    assert study_of(study_id).ended_at is not None
    with transaction() as session:
        assert violations(session) == []
