"""What a workspace may use: the names of its quotas, what each bounds, and the defaults that an operator sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from service.core.settings import settings

Name = Literal["queued_jobs", "running_jobs", "compute_seconds", "stored_bytes"]

MEANINGS: Final[dict[Name, str]] = {
    "queued_jobs": "jobs that wait in the queue",
    "running_jobs": "jobs that run at once; more wait in the queue",
    "compute_seconds": "seconds of attempts within 24 hours, what unfinished jobs are estimated to take included",
    "stored_bytes": "bytes of data sets, checkpoints and initializations",
}

LEAST: Final[dict[Name, int]] = {"queued_jobs": 0, "running_jobs": 1, "compute_seconds": 0, "stored_bytes": 0}
"""A workspace that may run no job would hold its queue for ever: to shut one out, set queued_jobs to 0."""


class Bounds(NamedTuple):
    """The most that a workspace may use of each; None: as much as there is."""

    queued_jobs: int | None
    running_jobs: int | None
    compute_seconds: int | None
    stored_bytes: int | None


def bounds(own: Mapping[str, Any]) -> Bounds:
    """The defaults, and over them what the workspace's own quotas say."""
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
