"""Python SDK of the A-MAML service: HTTP only.

>>> from amaml_client import Client
>>> with Client() as client:
...     job = client.submit({"family": {"kind": "sinusoid"}})
...     client.wait(job.id).check()
...     client.download(job.id, "init.safetensors")
"""

from __future__ import annotations

from amaml_client.async_client import AsyncClient
from amaml_client.client import Client
from amaml_client.errors import (
    AmamlError,
    ChecksumMismatch,
    Conflict,
    Forbidden,
    Invalid,
    JobCancelled,
    JobEnded,
    JobFailed,
    NoInitialization,
    NotFound,
    Problem,
    QuotaExceeded,
    Refused,
    ServerFailed,
    SpecFileError,
    TimedOut,
    Unauthenticated,
    Unreachable,
)
from amaml_client.results import Dataset, Event, Initialization, Job, Kind, Progress
from amaml_client.specfile import SpecFile, read_spec

__all__ = [
    "AmamlError",
    "AsyncClient",
    "ChecksumMismatch",
    "Client",
    "Conflict",
    "Dataset",
    "Event",
    "Forbidden",
    "Initialization",
    "Invalid",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "Kind",
    "NoInitialization",
    "NotFound",
    "Problem",
    "Progress",
    "QuotaExceeded",
    "Refused",
    "ServerFailed",
    "SpecFile",
    "SpecFileError",
    "TimedOut",
    "Unauthenticated",
    "Unreachable",
    "read_spec",
]
