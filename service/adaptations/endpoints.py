"""/v1/jobs/{id}/adaptations, /v1/adaptations: a learned initialization, adapted to a task's rows by a worker."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from amaml.adaptation_request import AdaptationRequest
from service.adaptations import initializations, rows
from service.adaptations import store as adaptations
from service.adaptations.initializations import Facts
from service.adaptations.schemas import AdaptationDocument, AdaptationWithResult, adaptation_document, with_result
from service.adaptations.store import Found
from service.adaptations.transitions import ENDED, State
from service.core import idempotency
from service.core.blobs import BlobNotFound
from service.core.database import transaction
from service.core.principal import Principal
from service.http import examples
from service.http.bodies import json_body
from service.http.files import documented_file, file_reply
from service.http.idempotency import Key, as_problems, check_key
from service.http.pages import Cursor, Limit, Page, cut, decode_id, encode
from service.http.problems import Problem, invalid, not_found
from service.http.replies import documented, json_reply, path_id
from service.http.waiting import Prefer, until, wanted_wait
from service.jobs.found import found_job
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1", tags=["adaptations"])

MAX_BYTES: Final = 8 << 20
"""Of a request: 10,000 rows of 100 numbers."""
USUAL_WAIT: Final = 5
"""Seconds, where Prefer says nothing: a small one is done in a fraction of one."""

_FILE: Final[dict[str, Any]] = {
    "dependencies": [needs("jobs:read")],
    "response_class": Response,
    "responses": documented_file("not_found", "no_weights"),
}
_LATER: Final[dict[str, Any]] = {
    "description": "It is queued or running; Location names it.",
    "model": AdaptationWithResult,
    "content": {"application/json": {"example": examples.ADAPTATION_QUEUED}},
}


@dataclass(frozen=True)
class Learned:
    """A job with an initialization."""

    job_id: UUID
    facts: Facts


def _learned(caller: Caller, job_id: str) -> Learned:
    """Looked at before anything of the body is read; raises the problem of a job that can't be adapted."""
    found = found_job(caller, job_id)
    blob_id = found.job.initialization_blob_id
    if blob_id is None:
        raise Problem(
            "wrong_state",
            f"The job is {found.job.state} and has no initialization to adapt: wait until it has succeeded, or name another.",
        )
    try:
        return Learned(found.job.id, initializations.facts(blob_id))
    except BlobNotFound:
        raise not_found("job") from None  # deleted since it was looked at
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
            examples.ADAPTATION,
            "broken_json", "bad_header", "not_found", "slow_body", "wrong_state", "idempotency_in_flight", "too_large",
            "wrong_media_type", "invalid", "idempotency_mismatch", "quota_exceeded", "too_many",
            status=201,
            description="It has ended: with its result, or failed for the reason that it gives.",
        ),
        202: _LATER,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/AdaptationRequest"}, "example": examples.ADAPTATION_REQUEST,
                }
            },
        }
    },
)  # fmt: skip
async def adapt(
    request: Request,
    caller: Caller,
    learned: Annotated[Learned, Depends(_learned)],
    wanted: Annotated[AdaptationRequest, Depends(json_body(AdaptationRequest, MAX_BYTES))],
    idempotency_key: Key = None,
    prefer: Prefer = None,
) -> Response:
    """Trains the job's learned network on the support rows and predicts at the query rows, all in the data's own units.

    The answer waits for the end, five seconds unless `Prefer: wait=N` says otherwise; then it is 202, and the result is
    to be fetched. A worker's warm process does the work, on its CPU.
    """
    check_key(idempotency_key)
    document, replayed = await run_in_threadpool(_submit, caller, learned, wanted, idempotency_key)
    seconds = wanted_wait(prefer, USUAL_WAIT)
    if seconds and document.state not in ENDED:
        await until(request.app.state.news, document.id, _has_ended, seconds)
    found = await run_in_threadpool(_find, caller, document.id)
    document = with_result(found) if found else document
    headers = {"Location": f"/v1/adaptations/{document.id}"}
    if prefer is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_reply(document, 201 if document.state in ENDED else 202, headers)


@router.get(
    "/jobs/{job_id}/adaptations",
    dependencies=[needs("jobs:read")],
    response_model=Page[AdaptationDocument],
    summary="List a job's adaptations",
    responses=documented(
        examples.page(examples.ADAPTATION_LISTED), "not_found", "invalid", description="Newest first."
    ),
)
def page(
    caller: Caller,
    job_id: str,
    state: Annotated[State | None, Query(description="Only this state.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Those that aren't forgotten yet, a page at a time, without their results."""
    wanted = found_job(caller, job_id).job.id
    with transaction() as session:
        listed = adaptations.page(session, caller.workspace_id, wanted, state, decode_id(cursor), limit + 1)
    found, more = cut(listed, limit)
    next_cursor = encode(found[-1].adaptation.id) if more else None
    data = [adaptation_document(one) for one in found]
    return json_reply(Page[AdaptationDocument](data=data, next_cursor=next_cursor))


@router.get(
    "/adaptations/{adaptation_id}",
    dependencies=[needs("jobs:read")],
    response_model=AdaptationWithResult,
    summary="Look at an adaptation",
    responses=documented(examples.ADAPTATION, "not_found"),
)
def look(caller: Caller, adaptation_id: str) -> Response:
    """Its state, and its result once it has one. Adaptations are forgotten after a day, unless the operator says otherwise."""
    return json_reply(with_result(_wanted(caller, adaptation_id)))


@router.head("/adaptations/{adaptation_id}/weights", summary="Size and digest of adapted weights", **_FILE)
@router.get("/adaptations/{adaptation_id}/weights", summary="Download adapted weights", **_FILE)
def weights(request: Request, caller: Caller, adaptation_id: str) -> Response:
    """A safetensors file like the job's initialization, of the adapted parameters: `amaml.load` reads it."""
    adaptation, sha256, size = (found := _wanted(caller, adaptation_id)).adaptation, found.sha256, found.size_bytes
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
    responses=documented(None, "not_found", status=204, description="It is gone."),
)
def delete(caller: Caller, adaptation_id: str) -> Response:
    """Removes it with its weights, in whatever state it is."""
    wanted = path_id(adaptation_id, "adaptation")
    with transaction() as session:
        removed = adaptations.remove(session, caller.workspace_id, wanted)
    if not removed:
        raise not_found("adaptation")
    return Response(status_code=204)


def _submit(
    caller: Principal, learned: Learned, wanted: AdaptationRequest, key: str | None
) -> tuple[AdaptationWithResult, bool]:
    """The adaptation's document, and whether it is the answer to an earlier request."""
    wrong = rows.errors(wanted, learned.facts)
    if wrong:
        raise invalid(wrong)
    asked = wanted.model_dump(mode="json", by_alias=True)
    with as_problems(), transaction() as session:
        if key is not None:
            canonical = json.dumps(["adaptation", str(learned.job_id), asked], sort_keys=True).encode()
            stored = idempotency.take(session, caller.workspace_id, key, hashlib.sha256(canonical).hexdigest())
            if stored is not None:
                return AdaptationWithResult.model_validate(stored), True
        try:
            adaptation = adaptations.submit(session, caller.workspace_id, learned.job_id, asked)
        except adaptations.TooMany as problem:
            raise Problem("too_many", f"{problem}.") from None
        if adaptation is None:
            raise not_found("job")  # deleted since it was looked at
        document = with_result(Found(adaptation, None, None))
        if key is not None:
            idempotency.keep(session, caller.workspace_id, key, json.loads(document.model_dump_json()))
        return document, False


def _wanted(caller: Principal, adaptation_id: str) -> Found:
    found = _find(caller, path_id(adaptation_id, "adaptation"))
    if found is None:
        raise not_found("adaptation")
    return found


def _find(caller: Principal, adaptation_id: UUID) -> Found | None:
    with transaction() as session:
        return adaptations.find(session, caller.workspace_id, adaptation_id)


def _has_ended(adaptation_id: UUID) -> bool:
    with transaction() as session:
        return adaptations.has_ended(session, adaptation_id)
