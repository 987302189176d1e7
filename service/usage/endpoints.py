"""/v1/usage: what the workspace uses of its quotas."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from service.core import quotas
from service.core.database import transaction
from service.http.replies import documented, json_reply
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1", tags=["usage"])


class QuotaDocument(BaseModel):
    model_config = ConfigDict(title="Quota", use_attribute_docstrings=True)

    used: float = Field(examples=[12])
    bound: int | None = Field(examples=[10_000])
    """null: unlimited."""


class ComputeDocument(QuotaDocument):
    model_config = ConfigDict(title="ComputeQuota")

    expected: float = Field(examples=[1_830.0])
    """Seconds that unfinished jobs will still take by their estimates; they count towards the bound."""


class UsageDocument(BaseModel):
    model_config = ConfigDict(title="Usage", use_attribute_docstrings=True)

    queued_jobs: QuotaDocument
    """Jobs that wait in the queue. At the bound, submissions are refused."""
    running_jobs: QuotaDocument = Field(examples=[{"used": 2, "bound": None}])
    """Jobs that run. At the bound, others of the workspace stay in the queue."""
    compute_seconds: ComputeDocument = Field(examples=[{"used": 5_400.5, "bound": 2_592_000, "expected": 1_830.0}])
    """Seconds of attempts in the last 24 hours. A job that would exceed the bound is refused."""
    stored_bytes: QuotaDocument = Field(examples=[{"used": 1_979_173, "bound": 107_374_182_400}])
    """Data sets, checkpoints, initializations. At the bound, uploads and submissions are refused."""


@router.get(
    "/usage",
    dependencies=[needs("usage:read")],
    response_model=UsageDocument,
    summary="What the workspace uses",
    responses=documented(),
)
def usage(caller: Caller) -> Response:
    """What is used of each quota, and its bound, which operators set."""
    with transaction() as session:
        now = quotas.use(session, caller.workspace_id)
    return json_reply(
        UsageDocument(
            queued_jobs=QuotaDocument(used=now.queued_jobs, bound=now.bounds.queued_jobs),
            running_jobs=QuotaDocument(used=now.running_jobs, bound=now.bounds.running_jobs),
            compute_seconds=ComputeDocument(
                used=round(now.compute_seconds, 3),
                expected=round(now.expected_seconds, 3),
                bound=now.bounds.compute_seconds,
            ),
            stored_bytes=QuotaDocument(used=now.stored_bytes, bound=now.bounds.stored_bytes),
        )
    )
