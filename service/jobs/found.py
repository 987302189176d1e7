"""The job that a path names."""

from __future__ import annotations

from service.core.principal import Principal
from service.http.named import found
from service.jobs import store as jobs
from service.jobs.store import Found


def found_job(caller: Principal, job_id: str) -> Found:
    """The job of the caller's workspace; raises the 404 problem if there is none of this id."""
    return found(caller, job_id, "job", jobs.find)
