"""/healthz: this process is alive. /readyz: jobs would run. Both are public, and reveal nothing else."""

from __future__ import annotations

from fastapi import APIRouter

from service.core import schema_version as schema
from service.core.database import transaction
from service.http.problems import Problem, declared
from service.workers import store as workers

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    summary="Is the process alive?",
    responses={200: {"description": "Yes.", "content": {"application/json": {"example": {"status": "ok"}}}}},
)
async def alive() -> dict[str, str]:
    """Answers without any other check."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Would jobs run?",
    responses={
        200: {"description": "Yes.", "content": {"application/json": {"example": {"status": "ready"}}}},
        **declared("unavailable"),
    },
)
def ready() -> dict[str, str]:
    """The database answers, has the schema of this version, and a worker was seen within the last ten seconds."""
    with transaction() as session:
        found, expected = schema.current(session), schema.head()
        if found != expected:
            raise Problem(
                "unavailable",
                f"The database's schema is at {found or 'nothing'}, this version needs {expected}: "
                "run alembic -c migrations/alembic.ini upgrade head.",
            )
        if not workers.any_lives(session):
            raise Problem(
                "unavailable", "No worker was seen within the last ten seconds: start celery -A worker.main worker."
            )
    return {"status": "ready"}
