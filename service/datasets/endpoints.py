"""/v1/datasets: files that families read. They are streamed in, checked by a worker, identified by content, never changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from amaml.dataset_format import Detected, formats
from service.core import blobs, quotas
from service.core.database import transaction
from service.core.principal import Principal
from service.datasets import store as datasets
from service.datasets.schemas import DatasetDocument, DatasetWithReport, State, dataset_document, with_report
from service.datasets.tables import Dataset
from service.datasets.upload import FileBody, take_in
from service.http.examples import example
from service.http.files import documented_file, file_reply
from service.http.idempotency import Answered, Key, once
from service.http.named import found, removed
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.replies import documented, json_reply
from service.http.waiting import Prefer, until, wanted_wait
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

if TYPE_CHECKING:
    Format = str
    Wanted = str
else:
    Format = Literal[*formats()]
    Wanted = Literal["auto", *formats()]

_FILE: Final[dict[str, Any]] = {"response_class": Response, "responses": documented_file("not_found")}


@router.post(
    "",
    dependencies=[needs("datasets:write")],
    status_code=201,
    response_model=DatasetWithReport,
    summary="Upload a data set",
    responses=documented(
        "bad_header", "digest_mismatch", "slow_body", "idempotency_in_flight", "too_large", "wrong_media_type", "invalid",
        "bad_data", "idempotency_mismatch", "quota_exceeded",
        status=201, description="It is stored, and may be named in a spec; a worker will check it.",
        example=example(DatasetWithReport, rows=None, tasks=None, state="pending", checked_at=None, report=None),
    ),
)  # fmt: skip
async def upload(
    request: Request,
    caller: Caller,
    _file: Annotated[None, Depends(FileBody())],
    idempotency_key: Key,
    format: Annotated[  # noqa: A002
        Wanted, Query(description="`auto` recognizes it by the beginning of the file.")
    ] = "auto",
    name: Annotated[
        str,
        Query(
            max_length=200, pattern=r"^[^\x00]*$", description="A name that is used again makes the next version of it."
        ),
    ] = "",
    prefer: Prefer = None,
) -> Response:
    """Accepts a table (CSV with a header, Parquet), labelled images (safetensors) or ratings as published (MovieLens-100K
    `u.data`, MovieLens-1M `ratings.dat`, RecBole `.inter`, Jester-1 as CSV). No archives.

    The answer comes at once; a worker then reads the whole file, and `report` shows what is in it. Jobs may name a pending
    data set: they start when it is ready. If the same bytes are sent again, the answer is the data set that there is already.
    If that is invalid without a report, because its check was interrupted, it becomes pending and is checked again.
    """
    await run_in_threadpool(_check_room, caller, request.headers.get("content-length", ""))
    writer = await run_in_threadpool(blobs.Writer)
    try:
        detected = await take_in(request, writer, format)
        answered = await run_in_threadpool(_finish, caller, writer, detected, name, idempotency_key)
    except BaseException:
        # Shielded, because this task is cancelled when the client disconnects.
        await asyncio.shield(run_in_threadpool(writer.discard))
        raise
    document = answered.document
    headers = {"Location": f"/v1/datasets/{document.id}", **answered.headers}
    seconds = wanted_wait(prefer)
    if seconds and document.state == "pending":
        await until(request.app.state.waiters, document.id, _is_checked, seconds)
        headers["Preference-Applied"] = f"wait={seconds}"
        checked = await run_in_threadpool(_find, caller, document.id)
        document = with_report(checked) if checked else document
    return json_reply(document, 201, headers)


@router.get(
    "",
    dependencies=[needs("datasets:read")],
    response_model=Page[DatasetDocument],
    summary="List data sets",
    responses=documented("invalid", description="Newest first."),
)
def page(
    caller: Caller,
    state: Annotated[State | None, Query(description="Only this state.")] = None,
    name: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="All versions of it.")] = None,
    format: Annotated[Format | None, Query(description="Only this format.")] = None,  # noqa: A002
    family: Annotated[
        str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only those that this family can read.")
    ] = None,
    limit: Limit = 50,
    cursor: IdCursor = None,
) -> Response:
    """The workspace's data sets, newest first, a page at a time, without their reports."""
    wanted = datasets.Filter(state, name, format, family)
    with transaction() as session:
        rows = datasets.page(session, caller.workspace_id, wanted, cursor, limit + 1)
    return json_reply(page_of(rows, limit, lambda one: one.id, dataset_document))


@router.get(
    "/{dataset_id}",
    dependencies=[needs("datasets:read")],
    response_model=DatasetWithReport,
    summary="Show a data set",
    responses=documented("not_found"),
)
def show(caller: Caller, dataset_id: str) -> Response:
    """The data set, its size, and the report of its check."""
    return json_reply(with_report(_wanted(caller, dataset_id)))


@router.head(
    "/{dataset_id}/content", dependencies=[needs("datasets:read")], summary="Size and digest of a data set", **_FILE
)
@router.get("/{dataset_id}/content", dependencies=[needs("datasets:read")], summary="Download a data set", **_FILE)
def content(request: Request, caller: Caller, dataset_id: str) -> Response:
    """The file as it was uploaded."""
    kept = _wanted(caller, dataset_id)
    return file_reply(request, kept.blob_id, kept.sha256, kept.bytes, f"{kept.id}.{kept.format}")


@router.delete(
    "/{dataset_id}",
    dependencies=[needs("datasets:write")],
    status_code=204,
    summary="Delete a data set",
    responses=documented("not_found", "in_use", status=204, description="It is deleted."),
)
def delete(caller: Caller, dataset_id: str) -> Response:
    """Deletes it, unless a job that hasn't ended reads it. This can't be undone."""
    return removed(caller, dataset_id, "data set", datasets.remove)


def _check_room(caller: Principal, announced: str) -> None:
    """Raises quotas.Exceeded before any of the body is read, if its announced length already exceeds the quota."""
    with transaction() as session:
        quotas.check_room(session, caller.workspace_id, int(announced) if announced.isdecimal() else 1)


def _finish(
    caller: Principal, writer: blobs.Writer, detected: Detected, name: str, key: str | None
) -> Answered[DatasetWithReport]:
    """Makes the written file a data set; discards it if there is one of the same bytes already, or an earlier answer."""
    file = writer.finish()
    is_taken = False

    def add(session: Session) -> DatasetWithReport:
        nonlocal is_taken
        dataset, is_taken = datasets.add(session, caller.workspace_id, file, detected, name)
        return with_report(dataset)

    def digest() -> str:
        return hashlib.sha256(json.dumps(["dataset", name, detected.format, file.sha256]).encode()).hexdigest()

    answered = once(caller, key, digest, DatasetWithReport, add)
    if not is_taken:
        writer.discard()
    return answered


def _wanted(caller: Principal, dataset_id: str) -> Dataset:
    return found(caller, dataset_id, "data set", datasets.find)


def _find(caller: Principal, dataset_id: UUID) -> Dataset | None:
    with transaction() as session:
        return datasets.find(session, caller.workspace_id, dataset_id)


def _is_checked(dataset_id: UUID) -> bool:
    with transaction() as session:
        return datasets.is_checked(session, dataset_id)
