"""What a workspace may use: the names and meanings of the quotas, and the bounds that an operator sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from service.core.settings import settings

Name = Literal["queued_jobs", "running_jobs", "compute_seconds", "stored_bytes"]

MEANINGS: Final[dict[Name, str]] = {
    "queued_jobs": "jobs that wait in the queue",
    "running_jobs": "jobs that run at once; more wait in the queue",
    "compute_seconds": "seconds of attempts within 24 hours, including what unfinished jobs are estimated to take",
    "stored_bytes": "bytes of data sets, checkpoints and initializations",
}

LEAST: Final[dict[Name, int]] = {"queued_jobs": 0, "running_jobs": 1, "compute_seconds": 0, "stored_bytes": 0}
"""The least bounds. If a workspace could run no job, its queue would never end: to lock it out, set queued_jobs to 0."""


class Bounds(NamedTuple):
    """The most that a workspace may use of each; None: unlimited."""

    queued_jobs: int | None
    running_jobs: int | None
    compute_seconds: int | None
    stored_bytes: int | None


def bounds(own: Mapping[str, Any]) -> Bounds:
    """The workspace's own quotas, and the defaults for the others."""
    defaults = settings()
    return Bounds(
        **{
            "queued_jobs": defaults.quota_queued_jobs,
            "running_jobs": defaults.quota_running_jobs,
            "compute_seconds": defaults.quota_compute_seconds,
            "stored_bytes": defaults.quota_stored_bytes,
            **own,
        }
    )
