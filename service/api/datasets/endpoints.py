"""/v1/datasets: files that families read. Streamed in, checked line by line, known by content, never changed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from amaml import ratings_file
from service.api import examples
from service.api.authentication import Caller
from service.api.bodies import refuse_announced_above, refuse_encoded, too_large
from service.api.datasets.schemas import DatasetDocument
from service.api.pages import Cursor, Limit, Page, cut, decode_id, encode
from service.api.problems import Problem, not_found
from service.api.replies import documented, json_reply, path_id
from service.settings import settings
from service.store import blobs, datasets
from service.store.database import transaction
from service.store.keys import Principal
from service.store.tables import Dataset

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

PAUSE_SECONDS: Final = 30.0
"""An upload from which nothing comes for so long is given up."""

Format = Literal["auto", "movielens-100k", "movielens-1m", "recbole", "jester-1", "csv"]


@router.post(
    "",
    status_code=201,
    response_model=DatasetDocument,
    summary="Upload a data set",
    responses=documented(
        examples.DATASET, "slow_body", "too_large", "wrong_media_type", "invalid", "bad_data",
        status=201, description="It is ready to be named in a spec.",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The file as it is.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "example": "user,item,rating\n1,10,4.0\n1,11,2.5\n",
                }
            },
        }
    },
)  # fmt: skip
async def upload(
    request: Request,
    caller: Caller,
    format: Annotated[Format, Query(description="`auto` tells it from the first line.")] = "auto",  # noqa: A002
    name: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$", description="For people.")] = "",
) -> Response:
    """Takes a ratings file as published: MovieLens-100K `u.data`, MovieLens-1M `ratings.dat`, RecBole `.inter`,
    Jester-1 as CSV, or CSV with a header that names user, item and rating.

    The same bytes, sent again, are the same data set. A file with wrong lines is refused, and its first errors told.
    """
    refuse_encoded(request)
    media_type = request.headers.get("content-type", "").lower()
    if media_type.startswith("multipart/"):
        raise Problem("wrong_media_type", "Send the file itself as the body, not a form: curl --data-binary @FILE.")
    refuse_announced_above(request, settings().max_dataset_bytes)
    writer = await run_in_threadpool(blobs.Writer)
    try:
        await _take_in(request, writer)
        dataset = await run_in_threadpool(_finish, caller, writer, format, name)
    except BaseException:
        # Shielded: a client that goes away cancels this very task.
        await asyncio.shield(run_in_threadpool(writer.discard))
        raise
    return json_reply(DatasetDocument.model_validate(dataset), 201, {"Location": f"/v1/datasets/{dataset.id}"})


@router.get(
    "",
    response_model=Page[DatasetDocument],
    summary="List data sets",
    responses=documented(examples.page(examples.DATASET), "invalid", description="Newest first."),
)
def page(caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The workspace's data sets, a page at a time."""
    with transaction() as session:
        rows = datasets.page(session, caller.workspace_id, decode_id(cursor), limit + 1)
    found, more = cut(rows, limit)
    next_cursor = encode(found[-1].id) if more else None
    return json_reply(Page(data=[DatasetDocument.model_validate(one) for one in found], next_cursor=next_cursor))


@router.get(
    "/{dataset_id}",
    response_model=DatasetDocument,
    summary="Look at a data set",
    responses=documented(examples.DATASET, "not_found"),
)
def look(caller: Caller, dataset_id: str) -> Response:
    """What it is and how much there is of it."""
    wanted = path_id(dataset_id, "data set")
    with transaction() as session:
        found = datasets.find(session, caller.workspace_id, wanted)
    if found is None:
        raise not_found("data set")
    return json_reply(DatasetDocument.model_validate(found))


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a data set",
    responses=documented(None, "not_found", "in_use", status=204, description="It is gone."),
)
def delete(caller: Caller, dataset_id: str) -> Response:
    """Removes it for good, unless a job that hasn't ended reads it."""
    wanted = path_id(dataset_id, "data set")
    try:
        with transaction() as session:
            removed = datasets.remove(session, caller.workspace_id, wanted)
    except datasets.StillUsed as problem:
        raise Problem("in_use", str(problem)) from None
    if not removed:
        raise not_found("data set")
    return Response(status_code=204)


async def _take_in(request: Request, writer: blobs.Writer) -> None:
    """The body into the store, a chunk at a time; raises Problem for one that is too large or stops coming."""
    limit = settings().max_dataset_bytes
    pieces = aiter(request.stream())
    pending = bytearray()
    received = 0
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces, None), PAUSE_SECONDS)
        except TimeoutError:
            raise Problem("slow_body", f"Nothing came for {PAUSE_SECONDS:g} s: send the file again.") from None
        if piece is None:
            break
        received += len(piece)
        if received > limit:
            raise too_large(limit)
        pending += piece
        if len(pending) >= blobs.CHUNK_BYTES:
            await run_in_threadpool(writer.write, bytes(pending))
            pending.clear()
    await run_in_threadpool(writer.write, bytes(pending))


def _finish(caller: Principal, writer: blobs.Writer, expected: Format, name: str) -> Dataset:
    """Checks the stored file and makes it a data set; raises the 422 problem with the first wrong lines."""
    file = writer.finish()
    summary = ratings_file.summarize(blobs.read(file.blob_id), expected)
    if summary.errors:
        first = summary.errors[0]
        raise Problem(
            "bad_data",
            f"The file can't be read as ratings: line {first.line}: {first.detail}.",
            errors=[{"line": error.line, "detail": error.detail} for error in summary.errors],
        )
    with transaction() as session:
        dataset, fresh = datasets.add(
            session, caller.workspace_id, file,
            name=name, file_format=summary.format, rows=summary.rows, tasks=summary.tasks,
        )  # fmt: skip
    if not fresh:
        writer.discard()
    return dataset
