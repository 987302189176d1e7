"""The job that a path names."""

from __future__ import annotations

from service.core.principal import Principal
from service.http.named import found
from service.jobs import store as jobs
from service.jobs.store import Found


def found_job(caller: Principal, job_id: str) -> Found:
    """Of the caller's workspace. Raises the problem of one that isn't there."""
    return found(caller, job_id, "job", jobs.find)
