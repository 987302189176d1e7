"""Studies submitted over HTTP, and what workers do to their jobs, by the store's own functions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx2 as httpx
from sqlalchemy import select

from service.core.database import transaction
from service.jobs import progress
from service.jobs.tables import Job
from service.studies import store as studies
from tests.support.api import SPEC
from tests.support.jobs import claim, succeed

GRID = {"/method/kind": ["amaml", "reptile"], "/runtime/seed": [0, 1]}


def submit(http: httpx.Client, base: Any = SPEC, grid: Any = GRID, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/studies", json={"name": "methods", "base": base, "grid": grid, **changes})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def cells(http: httpx.Client, study: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(study["links"]["self"]).json()["jobs"]
    return found


def advance(study: dict[str, Any]) -> None:
    with transaction() as session:
        studies.advance(session, UUID(study["id"]))


def held(study: dict[str, Any]) -> list[bool]:
    """In the grid's order."""
    with transaction() as session:
        query = select(Job.held).where(Job.study_id == UUID(study["id"])).order_by(Job.cell_number)
        return list(session.scalars(query))


def finish(job_id: str, scores: list[float]) -> None:
    """What a worker does for a job from its claim to its end."""
    claim(job_id)
    evaluation = {
        "step": 3, "metric": "nrmse", "higher_is_better": False, "scores": {"tuned": scores, "flow": scores},
        "curve": {"epochs": [0, 10], "mean": [1.0, 0.5], "error": [0.1, float("nan")]}, "along_flow": None,
    }  # fmt: skip
    with transaction() as session:
        job = session.get_one(Job, UUID(job_id), with_for_update=True)
        progress.add_evaluations(session, job, [evaluation])
        progress.add_metrics(session, job, {"seconds": [(1, 0.5), (2, 0.1), (3, 0.2)], "memory_bytes": [(1, 2e8)]})
    succeed(job_id, b"theta")
