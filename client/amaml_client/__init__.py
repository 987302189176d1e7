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
    AdaptationFailed,
    AmamlError,
    ChecksumMismatch,
    Conflict,
    DatasetInvalid,
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
    RowFileError,
    ServerFailed,
    SpecFileError,
    StudyIncomplete,
    TimedOut,
    Unauthenticated,
    Unreachable,
)
from amaml_client.results import (
    Adaptation,
    AdaptationResult,
    Cell,
    Column,
    Dataset,
    DatasetReport,
    Delivery,
    DeliveryAttempt,
    Event,
    Initialization,
    Job,
    Kind,
    LossCurve,
    Progress,
    Quota,
    Study,
    Usage,
    Webhook,
)
from amaml_client.specfile import SpecFile, read_spec

__all__ = [
    "Adaptation",
    "AdaptationFailed",
    "AdaptationResult",
    "AmamlError",
    "AsyncClient",
    "Cell",
    "ChecksumMismatch",
    "Client",
    "Column",
    "Conflict",
    "Dataset",
    "DatasetInvalid",
    "DatasetReport",
    "Delivery",
    "DeliveryAttempt",
    "Event",
    "Forbidden",
    "Initialization",
    "Invalid",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "Kind",
    "LossCurve",
    "NoInitialization",
    "NotFound",
    "Problem",
    "Progress",
    "Quota",
    "QuotaExceeded",
    "Refused",
    "RowFileError",
    "ServerFailed",
    "SpecFile",
    "SpecFileError",
    "Study",
    "StudyIncomplete",
    "TimedOut",
    "Unauthenticated",
    "Unreachable",
    "Usage",
    "Webhook",
    "read_spec",
]
