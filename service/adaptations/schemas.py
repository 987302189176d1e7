"""What the API says about an adaptation."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from amaml.adaptation_request import AdaptationResult
from service.adaptations.store import Found
from service.adaptations.transitions import State


class WeightsDocument(BaseModel):
    model_config = ConfigDict(title="Weights")

    sha256: str
    size_bytes: int


class AdaptationLinks(BaseModel):
    self: str
    job: str
    weights: str


class AdaptationDocument(BaseModel):
    model_config = ConfigDict(title="Adaptation", use_attribute_docstrings=True)

    id: UUID
    job_id: UUID
    by: Literal["flow", "finetune"]
    state: State
    status_reason: str | None
    """A machine word, where it failed."""
    status_detail: str | None
    """A sentence that names the remedy."""
    weights: WeightsDocument | None
    """The file at links.weights; null unless weights were asked for, and it succeeded."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    links: AdaptationLinks


class AdaptationWithResult(AdaptationDocument):
    model_config = ConfigDict(title="AdaptationWithResult")

    result: AdaptationResult | None
    """Null until it has succeeded."""


def adaptation_document(found: Found) -> AdaptationDocument:
    return AdaptationDocument.model_validate(_fields(found))


def with_result(found: Found) -> AdaptationWithResult:
    return AdaptationWithResult.model_validate({**_fields(found), "result": found.adaptation.result})


def _fields(found: Found) -> dict[str, object]:
    one = found.adaptation
    weights = None
    if found.sha256 is not None and found.size_bytes is not None:
        weights = WeightsDocument(sha256=found.sha256, size_bytes=found.size_bytes)
    path = f"/v1/adaptations/{one.id}"
    return {
        "id": one.id,
        "job_id": one.job_id,
        "by": one.by,
        "state": one.state,
        "status_reason": one.status_reason,
        "status_detail": one.status_detail,
        "weights": weights,
        "created_at": one.created_at,
        "started_at": one.started_at,
        "ended_at": one.ended_at,
        "links": {"self": path, "job": f"/v1/jobs/{one.job_id}", "weights": f"{path}/weights"},
    }
