"""/v1/jobs: submit, show, cancel, pause, resume, extend and delete jobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from amaml.spec import JobSpec
from amaml.spec.part import RuleBroken
from service.core.database import transaction
from service.core.principal import Principal
from service.http.bodies import JsonBody
from service.http.etags import UNCHANGED, IfNoneMatch, tagged, unchanged
from service.http.examples import example
from service.http.idempotency import Answered, Key, once
from service.http.named import Step, existing, removed, steered
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.problems import invalid
from service.http.replies import documented, json_reply, path_id
from service.http.waiting import Prefer, until, wanted_wait
from service.jobs import store as jobs
from service.jobs.estimate import estimate
from service.jobs.found import found_job
from service.jobs.schemas import (
    SPEC_EXAMPLE,
    DryRunDocument,
    Extension,
    JobDocument,
    Progress,
    found_document,
    job_document,
)
from service.jobs.transitions import FINAL, State
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Text = Annotated[str | None, Query(max_length=400, pattern=r"^[^\x00]*$")]


@router.post(
    "",
    dependencies=[needs("jobs:write")],
    status_code=201,
    response_model=JobDocument,
    summary="Submit a job",
    responses={
        200: {"description": "With dry_run: nothing was queued.", "model": DryRunDocument},
        **documented(
            "broken_json", "bad_header", "slow_body", "idempotency_in_flight", "too_large", "wrong_media_type", "invalid",
            "idempotency_mismatch", "quota_exceeded",
            status=201,
            description="The job is queued; Location names it.",
            example=example(
                JobDocument, state="queued", phase=None, progress=example(Progress, iteration=0, eta_seconds=None),
                metrics={}, attempt=0, started_at=None,
            ),
        ),
    },
)  # fmt: skip
async def submit(
    request: Request,
    caller: Caller,
    spec: Annotated[JobSpec, Depends(JsonBody(JobSpec, example=SPEC_EXAMPLE))],
    idempotency_key: Key,
    dry_run: Annotated[
        bool, Query(description="Check and complete the spec and estimate its cost, without queueing a job.")
    ] = False,
    prefer: Prefer = None,
) -> Response:
    """Queues a meta-training run. Only `family` is required; the job's `spec` shows every default.

    When the answer arrives, the job is stored. It runs as soon as a worker is free.
    """
    if dry_run:
        await run_in_threadpool(_check_references, caller, spec)
        return json_reply(DryRunDocument(spec=spec.model_dump(mode="json"), estimate=estimate(spec)))
    answered = await run_in_threadpool(_submit, caller, spec, idempotency_key)
    document = answered.document
    headers = {"Location": f"/v1/jobs/{document.id}", **answered.headers}
    seconds = wanted_wait(prefer)
    if seconds and document.state not in FINAL:
        await until(request.app.state.waiters, document.id, _has_ended, seconds)
        headers["Preference-Applied"] = f"wait={seconds}"
        found = await run_in_threadpool(_find, caller, document.id)
        document = found_document(found) if found else document
    return json_reply(document, 201, headers)


@router.get(
    "",
    dependencies=[needs("jobs:read")],
    response_model=Page[JobDocument],
    summary="List jobs",
    responses=documented("invalid", description="Newest first."),
)
def page(
    caller: Caller,
    state: Annotated[list[State] | None, Query(description="Only these states; may be repeated.")] = None,
    family: Text = None,
    method: Text = None,
    tag: Annotated[
        str | None, Query(max_length=400, pattern=r"^[^\x00]*$", description="A tag's name, or `name:value`.")
    ] = None,
    study: Annotated[UUID | None, Query(description="Only the jobs of this study.")] = None,
    limit: Limit = 50,
    cursor: IdCursor = None,
) -> Response:
    """The workspace's jobs, newest first, a page at a time."""
    wanted = jobs.Filter(state, family, method, tag, study)
    with transaction() as session:
        rows = jobs.page(session, caller.workspace_id, wanted, cursor, limit + 1)
    return json_reply(page_of(rows, limit, lambda found: found.job.id, found_document))


@router.get(
    "/{job_id}",
    dependencies=[needs("jobs:read")],
    response_model=JobDocument,
    summary="Show a job",
    responses=documented("not_found", description="The job; its ETag changes with it.") | UNCHANGED,
)
def show(caller: Caller, job_id: str, if_none_match: IfNoneMatch = None) -> Response:
    """The job as it is now. With If-None-Match, the answer is an empty 304 as long as nothing has changed."""
    wanted = path_id(job_id, "job")
    with transaction() as session:
        if if_none_match is not None:
            version = existing(jobs.version(session, caller.workspace_id, wanted), "job")
            if nothing_new := unchanged(if_none_match, f'"{version}"'):
                return nothing_new
        found = existing(jobs.find(session, caller.workspace_id, wanted), "job")
    return json_reply(found_document(found), headers=tagged(f'"{found.version}"'))


@router.delete(
    "/{job_id}",
    dependencies=[needs("jobs:write")],
    status_code=204,
    summary="Delete an ended job",
    responses=documented("not_found", "wrong_state", "in_use", status=204, description="It is deleted."),
)
def delete(caller: Caller, job_id: str) -> Response:
    """Removes the job with its metrics, events, checkpoints and initialization. This can't be undone."""
    return removed(caller, job_id, "job", jobs.remove)


_STEERED: Final = documented(
    "not_found", "wrong_state", status=202, description="The request is accepted; the state shows when it is done."
)


@router.post(
    "/{job_id}/cancel",
    dependencies=[needs("jobs:write")],
    status_code=202,
    response_model=JobDocument,
    summary="Cancel",
    responses=_STEERED,
)
def cancel(caller: Caller, job_id: str) -> Response:
    """Ends the job for good: at once if it waits, within a few seconds if it runs. Cancelling it again changes nothing."""
    return _steer(caller, job_id, jobs.cancel)


@router.post(
    "/{job_id}/pause",
    dependencies=[needs("jobs:write")],
    status_code=202,
    response_model=JobDocument,
    summary="Pause",
    responses=_STEERED,
)
def pause(caller: Caller, job_id: str) -> Response:
    """Stops the job at a checkpoint, from which it can be resumed later."""
    return _steer(caller, job_id, jobs.pause)


@router.post(
    "/{job_id}/resume",
    dependencies=[needs("jobs:write")],
    status_code=202,
    response_model=JobDocument,
    summary="Resume",
    responses=_STEERED,
)
def resume(caller: Caller, job_id: str) -> Response:
    """Queues a paused job again; it continues from its newest checkpoint."""
    return _steer(caller, job_id, jobs.resume)


def _spec_of(caller: Caller, job_id: str) -> JobSpec:
    """The spec of the job in the path; raises the 404 problem before any of the body is read."""
    return JobSpec.from_document(found_job(caller, job_id).job.spec)


@router.post(
    "/{job_id}/extend",
    dependencies=[needs("jobs:write")],
    status_code=202,
    response_model=JobDocument,
    summary="Extend",
    responses=documented(
        "broken_json", "slow_body", "not_found", "wrong_state", "in_use", "too_large", "wrong_media_type",
        "invalid", "quota_exceeded",
        status=202, description="It is queued again.",
    ),
)  # fmt: skip
def extend(
    caller: Caller,
    job_id: str,
    spec: Annotated[JobSpec, Depends(_spec_of)],
    wanted: Annotated[Extension, Depends(JsonBody(Extension))],
) -> Response:
    """Queues a succeeded job again with more meta-iterations in total. It continues as if it had never ended, and its result is
    bit for bit that of a run which was as long from the start. Its initialization stays until the longer run has succeeded."""
    try:
        longer = spec if spec.meta.iterations == wanted.iterations else spec.extended(wanted.iterations)
    except RuleBroken as problem:
        raise invalid([{"pointer": "/iterations", "detail": str(problem)}]) from None
    return _steer(caller, job_id, partial(jobs.extend, spec=longer))


def _steer(caller: Principal, job_id: str, step: Step) -> Response:
    return steered(caller, job_id, "job", step, jobs.find, found_document)


def _check_references(caller: Principal, spec: JobSpec) -> None:
    with transaction() as session:
        jobs.check_references(session, caller.workspace_id, spec)


def _submit(caller: Principal, spec: JobSpec, key: str | None) -> Answered[JobDocument]:
    def submit_spec(session: Session) -> JobDocument:
        return job_document(jobs.submit(session, caller.workspace_id, spec))

    return once(caller, key, spec.sha256, JobDocument, submit_spec)


def _find(caller: Principal, job_id: UUID) -> jobs.Found | None:
    with transaction() as session:
        return jobs.find(session, caller.workspace_id, job_id)


def _has_ended(job_id: UUID) -> bool:
    with transaction() as session:
        state = jobs.state(session, job_id)
    return state is None or state in FINAL
