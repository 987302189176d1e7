"""/v1/jobs/{id}/events: the events of a job, as pages of JSON or as a stream (server-sent events)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from service.core.database import transaction
from service.http.notifications import Waiters, is_set_within
from service.http.pages import Limit, NumberCursor, Page, page_of
from service.http.problems import Problem, not_found
from service.http.replies import documented, json_reply, path_id
from service.jobs import events
from service.jobs import store as jobs
from service.jobs.schemas import EventDocument, event_document
from service.jobs.tables import Event
from service.jobs.transitions import FINAL, State
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1/jobs", tags=["events"])

EVENT_STREAM: Final = "text/event-stream"
KEEP_ALIVE_SECONDS: Final = 15.0
_KEEP_ALIVES_BETWEEN_READS: Final = 20
"""Postgres notifies of events (service/http/notifications.py), so a stream reads the database without one only this often:
thousands of idle streams would otherwise keep it busy."""
_BATCH: Final = 200
_NUMBER: Final = re.compile(r"\d{1,18}")


@router.get(
    "/{job_id}/events",
    dependencies=[needs("jobs:read")],
    response_model=Page[EventDocument],
    summary="Events, as pages or as a stream",
    responses={
        **documented("not_found", "bad_header", "invalid"),
        200: {
            "description": "A page, oldest first; or a stream, if Accept names text/event-stream: `id` is the event's number, "
            "`event` its kind, `data` the event as JSON; `event: end` closes the stream.",
            "content": {
                EVENT_STREAM: {
                    "schema": {"type": "string"},
                    "example": 'id: 2\nevent: state\ndata: {"seq": 2, "kind": "state", …}\n\n',
                },
            },
        },
    },
)
async def listen(
    request: Request,
    caller: Caller,
    job_id: str,
    limit: Limit = 100,
    cursor: NumberCursor = None,
    accept: Annotated[str, Header(description="`text/event-stream` asks for the stream.")] = "application/json",
    last_event_id: Annotated[str | None, Header(description="Only events after this number.")] = None,
) -> Response:
    """Every change of state and every checkpoint, and the progress at intervals. Over reconnects no event is lost or repeated."""
    wanted = path_id(job_id, "job")
    if await run_in_threadpool(_missing, caller.workspace_id, wanted):
        raise not_found("job")
    after = max(cursor or 0, _number(last_event_id))
    if EVENT_STREAM in accept.lower():
        return StreamingResponse(
            _stream(request.app.state.waiters, wanted, after),
            media_type=EVENT_STREAM,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    rows, _ = await run_in_threadpool(_read, wanted, after, limit + 1)
    return json_reply(page_of(rows, limit, lambda row: row.seq, event_document))


async def _stream(waiting: Waiters, job_id: UUID, after: int) -> AsyncIterator[str]:
    """The events after that number, as they come, until the job has ended or is deleted."""
    yield "retry: 1000\n\n"
    with waiting.of(job_id) as event:
        while True:
            event.clear()
            rows, state = await run_in_threadpool(_read, job_id, after, _BATCH)
            for row in rows:
                yield f"id: {row.seq}\nevent: {row.kind}\ndata: {event_document(row).model_dump_json()}\n\n"
                after = row.seq
            if len(rows) == _BATCH:
                continue
            if state is None or state in FINAL:
                yield f'event: end\ndata: {{"state": "{state or "deleted"}"}}\n\n'
                return
            for _ in range(_KEEP_ALIVES_BETWEEN_READS):
                if await is_set_within(event, KEEP_ALIVE_SECONDS):
                    break
                yield ": the job goes on\n\n"


def _read(job_id: UUID, after: int, limit: int) -> tuple[list[Event], State | None]:
    with transaction() as session:
        # The state is read first: so an event that is committed between the two reads is never missed after a final state.
        state = jobs.state(session, job_id)
        return events.after(session, job_id, after, limit), state


def _missing(workspace_id: UUID, job_id: UUID) -> bool:
    with transaction() as session:
        return jobs.version(session, workspace_id, job_id) is None


def _number(last_event_id: str | None) -> int:
    if last_event_id is None or last_event_id == "":
        return 0
    if not _NUMBER.fullmatch(last_event_id):
        raise Problem("bad_header", "Last-Event-ID must be the number of an event: give one as it came, or none.")
    return int(last_event_id)
