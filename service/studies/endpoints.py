"""/v1/studies: grids of jobs, and their comparison."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from sqlalchemy.orm import Session

from amaml.metrics import TUNED
from service.core.database import transaction
from service.core.principal import Principal
from service.http import validation
from service.http.bodies import JsonBody
from service.http.etags import UNCHANGED, IfNoneMatch, tagged, unchanged
from service.http.idempotency import Answered, Key, once
from service.http.named import existing, removed, steered
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.problems import Problem, invalid
from service.http.replies import documented, json_reply, path_id
from service.keys.authentication import Caller, needs
from service.studies import store as studies
from service.studies.grid import expand, in_body
from service.studies.report.page import POLICY, as_html
from service.studies.report.report import StudyReport, report
from service.studies.report.table import as_csv, as_markdown
from service.studies.report.words import label
from service.studies.report_example import REPORT_EXAMPLE
from service.studies.schemas import NewStudy, StudyDetail, StudyDocument, study_detail, study_document

router = APIRouter(prefix="/v1/studies", tags=["studies"])

Format = Literal["json", "csv", "md", "html"]
MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json", "csv": "text/csv", "md": "text/markdown", "html": "text/html",
}  # fmt: skip


@router.post(
    "",
    dependencies=[needs("studies:write")],
    status_code=201,
    response_model=StudyDocument,
    summary="Submit a study",
    responses=documented(
        "broken_json", "bad_header", "slow_body", "idempotency_in_flight", "too_large", "wrong_media_type", "invalid",
        "idempotency_mismatch", "quota_exceeded",
        status=201,
        description="Its jobs are queued; Location names it.",
    ),
)  # fmt: skip
def submit(caller: Caller, wanted: Annotated[NewStudy, Depends(JsonBody(NewStudy))], idempotency_key: Key) -> Response:
    """Queues a job for every cell of a grid, of which at most `concurrency` run at once.

    Every cell's spec is validated first: if one is invalid, no job is queued.
    """
    answered = _submit(caller, wanted, idempotency_key)
    headers = {"Location": f"/v1/studies/{answered.document.id}", **answered.headers}
    return json_reply(answered.document, 201, headers)


@router.get(
    "",
    dependencies=[needs("studies:read")],
    response_model=Page[StudyDocument],
    summary="List studies",
    responses=documented("invalid", description="Newest first."),
)
def page(caller: Caller, limit: Limit = 50, cursor: IdCursor = None) -> Response:
    """The workspace's studies, newest first, a page at a time."""
    with transaction() as session:
        found = studies.page(session, caller.workspace_id, cursor, limit + 1)
    return json_reply(page_of(found, limit, lambda one: one.study.id, study_document))


@router.get(
    "/{study_id}",
    dependencies=[needs("studies:read")],
    response_model=StudyDetail,
    summary="Show a study",
    responses=documented("not_found", description="The study and its cells; its ETag changes with them.") | UNCHANGED,
)
def show(caller: Caller, study_id: str, if_none_match: IfNoneMatch = None) -> Response:
    """The study and the state of each of its jobs. With If-None-Match, the answer is an empty 304 while nothing has changed."""
    wanted = path_id(study_id, "study")
    with transaction() as session:
        found = existing(studies.find(session, caller.workspace_id, wanted), "study")
        etag = f'"{found.version}"'
        if nothing_new := unchanged(if_none_match, etag):
            return nothing_new
        cells = studies.cells(session, wanted)
    return json_reply(study_detail(found, cells), headers=tagged(etag))


@router.get(
    "/{study_id}/report",
    dependencies=[needs("studies:read")],
    response_model=StudyReport,
    summary="The report",
    responses={
        **documented("not_found", "invalid"),
        200: {
            "description": "As JSON, CSV, Markdown, or one self-contained page of HTML.",
            "content": {
                "application/json": {"example": REPORT_EXAMPLE},
                "text/csv": {"schema": {"type": "string"}, "example": "/method/kind,jobs,scored,metric,…"},
                "text/markdown": {"schema": {"type": "string"}, "example": "# Methods\n\n| cell | seeds | …"},
                "text/html": {"schema": {"type": "string"}, "example": "<!doctype html>…"},
            },
        },
        **UNCHANGED,
    },
)
def compared(
    caller: Caller,
    study_id: str,
    format: Annotated[Format | None, Query(description="Takes precedence over Accept.")] = None,  # noqa: A002 - the API's word
    score: Annotated[
        str,
        Query(
            pattern=r"^[a-z_]{1,64}$", description="How the tasks were adapted: a name among an evaluation's scores."
        ),
    ] = TUNED,
    accept: Annotated[
        str, Header(description="`text/csv`, `text/markdown`, `text/html`, or else JSON.")
    ] = "application/json",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """For every cell: mean and standard error over seeds, a paired t test against the best of its block, time and memory of a
    meta-update, and the fine-tuning curve; for cells without a result the reason. A study that still runs has a report, too.
    """
    wanted = path_id(study_id, "study")
    kind = format or accepted(accept)
    with transaction() as session:
        found = existing(studies.find(session, caller.workspace_id, wanted), "study")
        etag = f'"{found.version}-{kind}-{score}"'
        if nothing_new := unchanged(if_none_match, etag):
            return nothing_new
        results = studies.results(session, wanted)
    made = report(found, results, score)
    headers = tagged(etag) | {"Vary": "Accept"}
    if kind == "json":
        return json_reply(made, headers=headers)
    if kind == "html":
        headers["Content-Security-Policy"] = POLICY
        text = as_html(made, found.study.base)
    else:
        text = as_csv(made) if kind == "csv" else as_markdown(made)
    return Response(text, headers=headers, media_type=f"{MEDIA_TYPES[kind]}; charset=utf-8")


@router.post(
    "/{study_id}/cancel",
    dependencies=[needs("studies:write")],
    status_code=202,
    response_model=StudyDocument,
    summary="Cancel a study",
    responses=documented(
        "not_found", "wrong_state", status=202, description="The request is accepted; the state shows when it is done."
    ),
)
def cancel(caller: Caller, study_id: str) -> Response:
    """Cancels every job of the study that hasn't ended. Cancelling it again changes nothing."""
    return steered(caller, study_id, "study", studies.cancel, studies.find, study_document)


@router.delete(
    "/{study_id}",
    dependencies=[needs("studies:write")],
    status_code=204,
    summary="Delete an ended study",
    responses=documented("not_found", "wrong_state", "in_use", status=204, description="It is deleted."),
)
def delete(caller: Caller, study_id: str) -> Response:
    """Deletes the study with its jobs and all their results. This can't be undone."""
    return removed(caller, study_id, "study", studies.remove)


def accepted(accept: str) -> Format:
    """The format with the highest weight in an Accept header, the first if there are several; JSON if it names none."""
    weighed: list[tuple[float, Format]] = []
    for one in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in one.split(";"))
        weight = next((_weight(part[2:]) for part in parameters if part.startswith("q=")), 1.0)
        weighed += [(weight, name) for name, known in MEDIA_TYPES.items() if known == media_type and weight > 0]
    return max(weighed, key=lambda pair: pair[0])[1] if weighed else "json"


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _submit(caller: Principal, wanted: NewStudy, key: str | None) -> Answered[StudyDocument]:
    cells = expand(wanted.name, wanted.base, wanted.grid)

    def submit_cells(session: Session) -> StudyDocument:
        study_id = studies.submit(
            session, caller.workspace_id, wanted.name, wanted.base, wanted.grid, wanted.concurrency, cells
        )
        return study_document(existing(studies.find(session, caller.workspace_id, study_id), "study"))

    try:
        return once(caller, key, partial(_digest, wanted), StudyDocument, submit_cells)
    except studies.BadCell as problem:
        raise _bad_cell(problem, cells[problem.number].coordinates, wanted.grid) from None


def _bad_cell(problem: studies.BadCell, coordinates: dict[str, Any], grid: dict[str, list[Any]]) -> Problem:
    indices = {axis: grid[axis].index(value) for axis, value in coordinates.items()}
    place = in_body(validation.pointer(problem.reference.field), indices)
    return invalid([{"pointer": place, "detail": f"{problem.reference.detail} (cell {label(coordinates)[:200]})"}])


def _digest(wanted: NewStudy) -> str:
    # Includes the kind of request, as with the same key on another path it is another request.
    text = "study " + json.dumps(wanted.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
