"""/v1/jobs/{id}/adaptations, /v1/adaptations: a learned initialization, adapted to a task's rows by a worker."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from amaml.adaptation_request import AdaptationRequest
from service.adaptations import initializations, rows
from service.adaptations import store as adaptations
from service.adaptations.initializations import Facts
from service.adaptations.schemas import (
    REQUEST_EXAMPLE,
    AdaptationDocument,
    AdaptationWithResult,
    adaptation_document,
    with_result,
)
from service.adaptations.store import Found
from service.adaptations.transitions import ENDED, State
from service.core.blobs import BlobNotFound
from service.core.database import transaction
from service.core.principal import Principal
from service.http.bodies import JsonBody
from service.http.examples import example
from service.http.files import documented_file, file_reply
from service.http.idempotency import Answered, Key, once
from service.http.named import found, removed
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.problems import Problem, invalid, not_found
from service.http.replies import documented, json_reply
from service.http.waiting import Prefer, until, wanted_wait
from service.jobs.found import found_job
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1", tags=["adaptations"])

MAX_BYTES: Final = 8 << 20
"""The most bytes of a request, which hold 10,000 rows of 100 numbers."""
USUAL_WAIT: Final = 5
"""Seconds, unless Prefer names others: a small adaptation takes a fraction of a second."""

_FILE: Final[dict[str, Any]] = {
    "dependencies": [needs("jobs:read")],
    "response_class": Response,
    "responses": documented_file("not_found", "no_weights"),
}
_LATER: Final[dict[str, Any]] = {
    "description": "It is queued or running; Location names it.",
    "model": AdaptationWithResult,
    "content": {
        "application/json": {
            "example": example(
                AdaptationWithResult, state="queued", weights=None, started_at=None, ended_at=None, result=None
            )
        }
    },
}


@dataclass(frozen=True)
class Learned:
    """A job with an initialization."""

    job_id: UUID
    facts: Facts


def _learned(caller: Caller, job_id: str) -> Learned:
    """The job in the path, before any of the body is read; raises a problem if it has no initialization to adapt."""
    job = found_job(caller, job_id).job
    blob_id = job.initialization_blob_id
    if blob_id is None:
        raise Problem(
            "wrong_state",
            f"The job is {job.state} and has no initialization to adapt: wait until it has succeeded, or name another.",
        )
    try:
        return Learned(job.id, initializations.facts(blob_id))
    except BlobNotFound:
        raise not_found("job") from None  # it was deleted meanwhile
    except initializations.Unreadable as problem:
        raise Problem(
            "wrong_state",
            f"The job's initialization can't be read ({problem}): it was made by another version, so submit the job again.",
        ) from None


@router.post(
    "/jobs/{job_id}/adaptations",
    dependencies=[needs("jobs:write")],
    status_code=201,
    response_model=AdaptationWithResult,
    summary="Adapt to a task",
    responses={
        **documented(
            "broken_json", "bad_header", "not_found", "slow_body", "wrong_state", "idempotency_in_flight", "too_large",
            "wrong_media_type", "invalid", "idempotency_mismatch", "quota_exceeded", "too_many",
            status=201,
            description="It has ended: with its result, or failed for the reason given.",
        ),
        202: _LATER,
    },
)  # fmt: skip
async def adapt(
    request: Request,
    caller: Caller,
    learned: Annotated[Learned, Depends(_learned)],
    wanted: Annotated[AdaptationRequest, Depends(JsonBody(AdaptationRequest, MAX_BYTES, REQUEST_EXAMPLE))],
    idempotency_key: Key,
    prefer: Prefer = None,
) -> Response:
    """Trains the job's learned network on the support rows and predicts at the query rows, all in the data's own units.

    The answer waits for the adaptation to end, for at most five seconds or the N of `Prefer: wait=N`. If it hasn't ended by
    then, the answer is 202, and the result can be fetched later. A worker's prestarted process does the work on its CPU.
    """
    answered = await run_in_threadpool(_submit, caller, learned, wanted, idempotency_key)
    document = answered.document
    seconds = wanted_wait(prefer, USUAL_WAIT)
    if seconds and document.state not in ENDED:
        await until(request.app.state.waiters, document.id, _has_ended, seconds)
    ended = await run_in_threadpool(_find, caller, document.id)
    document = with_result(ended) if ended else document
    headers = {"Location": f"/v1/adaptations/{document.id}", **answered.headers}
    if prefer is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    return json_reply(document, 201 if document.state in ENDED else 202, headers)


@router.get(
    "/jobs/{job_id}/adaptations",
    dependencies=[needs("jobs:read")],
    response_model=Page[AdaptationDocument],
    summary="List a job's adaptations",
    responses=documented("not_found", "invalid", description="Newest first."),
)
def page(
    caller: Caller,
    job_id: str,
    state: Annotated[State | None, Query(description="Only this state.")] = None,
    limit: Limit = 50,
    cursor: IdCursor = None,
) -> Response:
    """The job's adaptations that are still kept, newest first, a page at a time, without their results."""
    wanted = found_job(caller, job_id).job.id
    with transaction() as session:
        listed = adaptations.page(session, caller.workspace_id, wanted, state, cursor, limit + 1)
    return json_reply(page_of(listed, limit, lambda one: one.adaptation.id, adaptation_document))


@router.get(
    "/adaptations/{adaptation_id}",
    dependencies=[needs("jobs:read")],
    response_model=AdaptationWithResult,
    summary="Show an adaptation",
    responses=documented("not_found"),
)
def show(caller: Caller, adaptation_id: str) -> Response:
    """Its state, and its result once it has one. Adaptations are deleted after a day, or what the operator has set."""
    return json_reply(with_result(_wanted(caller, adaptation_id)))


@router.head("/adaptations/{adaptation_id}/weights", summary="Size and digest of adapted weights", **_FILE)
@router.get("/adaptations/{adaptation_id}/weights", summary="Download adapted weights", **_FILE)
def weights(request: Request, caller: Caller, adaptation_id: str) -> Response:
    """The adapted parameters as a safetensors file like the job's initialization, which `amaml.load` reads."""
    kept = _wanted(caller, adaptation_id)
    adaptation, sha256, size = kept.adaptation, kept.sha256, kept.size_bytes
    if adaptation.weights_blob_id is None or sha256 is None or size is None:
        raise Problem(
            "no_weights",
            f"The adaptation is {adaptation.state} and has no weights: name weights in `return`, and wait until it has "
            "succeeded.",
        )
    return file_reply(request, adaptation.weights_blob_id, sha256, size, f"{adaptation.id}.safetensors")


@router.delete(
    "/adaptations/{adaptation_id}",
    dependencies=[needs("jobs:write")],
    status_code=204,
    summary="Delete an adaptation",
    responses=documented("not_found", status=204, description="It is deleted."),
)
def delete(caller: Caller, adaptation_id: str) -> Response:
    """Deletes it with its weights, in any state."""
    return removed(caller, adaptation_id, "adaptation", adaptations.remove)


def _submit(
    caller: Principal, learned: Learned, wanted: AdaptationRequest, key: str | None
) -> Answered[AdaptationWithResult]:
    wrong = rows.errors(wanted, learned.facts)
    if wrong:
        raise invalid(wrong)
    document = wanted.model_dump(mode="json", by_alias=True)

    def submit(session: Session) -> AdaptationWithResult:
        adaptation = adaptations.submit(session, caller.workspace_id, learned.job_id, document)
        if adaptation is None:
            raise not_found("job")  # it was deleted meanwhile
        return with_result(Found(adaptation, None, None))

    def digest() -> str:
        canonical = json.dumps(["adaptation", str(learned.job_id), document], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    return once(caller, key, digest, AdaptationWithResult, submit)


def _wanted(caller: Principal, adaptation_id: str) -> Found:
    return found(caller, adaptation_id, "adaptation", adaptations.find)


def _find(caller: Principal, adaptation_id: UUID) -> Found | None:
    with transaction() as session:
        return adaptations.find(session, caller.workspace_id, adaptation_id)


def _has_ended(adaptation_id: UUID) -> bool:
    with transaction() as session:
        return adaptations.has_ended(session, adaptation_id)
