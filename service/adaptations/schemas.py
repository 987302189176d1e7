"""The API's documents of an adaptation."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from amaml.adaptation_request import AdaptationResult
from service.adaptations.store import Found
from service.adaptations.transitions import State
from service.http.examples import JOB_ID, SHA256

_ID: Final = UUID("0199aa12-3d4e-7f50-9a6b-7c8d9eafb0c1")
_OWN: Final = f"/v1/adaptations/{_ID}"

REQUEST_EXAMPLE: Final[dict[str, Any]] = {
    "support": {"x": [[-0.5, 0.1], [0.0, 0.3], [0.4, -0.2]], "y": [0.31, -0.62, 0.15]},
    "query": {"x": [[0.2, 0.2], [0.6, 0.0]]},
    "by": "flow",
    "return": ["predictions", "curve", "weights"],
}
_RESULT_EXAMPLE: Final[dict[str, Any]] = {
    "outputs": ["y"],
    "predictions": [[-0.11], [0.42]],
    "curve": {"over": "t", "at": [0.0, 1.0, 2.0], "support": [0.48, 0.06, 0.01], "query": None},
}


class WeightsDocument(BaseModel):
    model_config = ConfigDict(title="Weights")

    sha256: str = Field(examples=[SHA256])
    size_bytes: int = Field(examples=[6_480])


class AdaptationLinks(BaseModel):
    self: str = Field(examples=[_OWN])
    job: str = Field(examples=[f"/v1/jobs/{JOB_ID}"])
    weights: str = Field(examples=[f"{_OWN}/weights"])


class AdaptationDocument(BaseModel):
    model_config = ConfigDict(title="Adaptation", use_attribute_docstrings=True)

    id: UUID = Field(examples=[_ID])
    job_id: UUID = Field(examples=[JOB_ID])
    by: Literal["flow", "finetune"]
    state: State = Field(examples=["succeeded"])
    status_reason: str | None
    """Why it failed, as a word for programs; null unless it failed."""
    status_detail: str | None
    """The same as a sentence, with the remedy."""
    weights: WeightsDocument | None
    """The file at links.weights; null unless the request named weights and it has succeeded."""
    created_at: datetime
    started_at: datetime | None = Field(examples=["2026-01-15T12:00:00.010000Z"])
    ended_at: datetime | None = Field(examples=["2026-01-15T12:00:00.090000Z"])
    links: AdaptationLinks


class AdaptationWithResult(AdaptationDocument):
    model_config = ConfigDict(title="AdaptationWithResult")

    result: AdaptationResult | None = Field(examples=[_RESULT_EXAMPLE])
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
