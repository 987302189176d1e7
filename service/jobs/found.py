"""The job that a path names."""

from __future__ import annotations

from service.core.database import transaction
from service.core.principal import Principal
from service.http.problems import not_found
from service.http.replies import path_id
from service.jobs import store as jobs
from service.jobs.store import Found


def found_job(caller: Principal, job_id: str) -> Found:
    """The job of the caller's workspace; raises the 404 problem if there is none of this id."""
    wanted = path_id(job_id, "job")
    with transaction() as session:
        found = jobs.find(session, caller.workspace_id, wanted)
    if found is None:
        raise not_found("job")
    return found
