"""The job that a path names."""

from __future__ import annotations

from service.api.problems import not_found
from service.api.replies import path_id
from service.store import jobs
from service.store.database import transaction
from service.store.jobs import Found
from service.store.keys import Principal


def found_job(caller: Principal, job_id: str) -> Found:
    """Of the caller's workspace. Raises the problem of one that isn't there."""
    wanted = path_id(job_id, "job")
    with transaction() as session:
        found = jobs.find(session, caller.workspace_id, wanted)
    if found is None:
        raise not_found("job")
    return found
