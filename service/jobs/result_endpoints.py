"""/v1/jobs/{id}/…: what a job has produced: curves, evaluations, attempts, checkpoints, the initialization."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from service.core.database import transaction
from service.http.files import documented_file, file_reply
from service.http.pages import Limit, NumberCursor, Page, page_of
from service.http.problems import Problem
from service.http.replies import documented, json_reply
from service.jobs import evaluations, metrics
from service.jobs import store as jobs
from service.jobs.found import found_job
from service.jobs.schemas import (
    AttemptDocument,
    CheckpointDocument,
    EvaluationDocument,
    attempt_document,
    checkpoint_document,
    evaluation_document,
)
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1/jobs", tags=["results"])

_CHECKPOINT_FILE: Final[dict[str, Any]] = {"response_class": Response, "responses": documented_file("not_found")}
_INITIALIZATION_FILE: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": documented_file("not_found", "no_initialization"),
}

# A pair [step, value], declared as an array of two numbers: many tools that read OpenAPI don't know `prefixItems`.
Curves = dict[str, list[Annotated[list[float | None], Field(min_length=2, max_length=2)]]]


@router.get(
    "/{job_id}/metrics",
    dependencies=[needs("jobs:read")],
    response_model=Curves,
    summary="Curves",
    responses=documented(
        "not_found",
        "invalid",
        description="Name → [[step, value], …]; null where not finite.",
        example={"meta_loss": [[1, 0.97], [2, 0.94]], "nrmse_tuned": [[100, 0.38]]},
    ),
)
def curves(
    caller: Caller,
    job_id: str,
    name: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only this metric.")] = None,
    from_step: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only from this step on.")] = 0,
    max_points: Annotated[
        int, Query(ge=4, le=20_000, description="A longer curve is thinned; its peaks and dips are kept.")
    ] = 2_000,
) -> Response:
    """One point per iteration or evaluation. A curve of more than max_points is thinned to the extremes of equal intervals."""
    job = found_job(caller, job_id).job
    with transaction() as session:
        return JSONResponse(metrics.series(session, job.id, name, from_step, max_points))


@router.get(
    "/{job_id}/evaluations",
    dependencies=[needs("jobs:read")],
    response_model=Page[EvaluationDocument],
    summary="Evaluations",
    responses=documented("not_found", "invalid", description="The latest first."),
)
def evaluated(caller: Caller, job_id: str, limit: Limit = 10, cursor: NumberCursor = None) -> Response:
    """The results of each evaluation: a score per test task, and the fine-tuning curve. `limit=1` gives the latest."""
    job = found_job(caller, job_id).job
    with transaction() as session:
        rows = evaluations.page(session, job.id, cursor, limit + 1)
    return json_reply(page_of(rows, limit, lambda one: one.step, evaluation_document))


@router.get(
    "/{job_id}/attempts",
    dependencies=[needs("jobs:read")],
    response_model=Page[AttemptDocument],
    summary="Attempts",
    responses=documented("not_found", "invalid", description="In order."),
)
def attempts(caller: Caller, job_id: str, limit: Limit = 100, cursor: NumberCursor = None) -> Response:
    """Each time that a worker ran the job: which worker, when, and why it ended."""
    job = found_job(caller, job_id).job
    with transaction() as session:
        rows = jobs.attempts(session, job.id, cursor or 0, limit + 1)
    return json_reply(page_of(rows, limit, lambda one: one.number, attempt_document))


@router.get(
    "/{job_id}/checkpoints",
    dependencies=[needs("jobs:read")],
    response_model=Page[CheckpointDocument],
    summary="Checkpoints",
    responses=documented("not_found", "invalid", description="Newest first."),
)
def checkpoints(caller: Caller, job_id: str, limit: Limit = 100, cursor: NumberCursor = None) -> Response:
    """The checkpoints that are kept."""
    job = found_job(caller, job_id).job
    with transaction() as session:
        kept = jobs.checkpoints(session, job.id)  # few: older ones are removed
    rows = [one for one in kept if cursor is None or one[0].step < cursor]
    return json_reply(page_of(rows, limit, lambda one: one[0].step, lambda one: checkpoint_document(*one)))


@router.head(
    "/{job_id}/checkpoints/{step}",
    dependencies=[needs("jobs:read")],
    summary="Size and digest of a checkpoint",
    **_CHECKPOINT_FILE,
)
@router.get(
    "/{job_id}/checkpoints/{step}",
    dependencies=[needs("jobs:read")],
    summary="Download a checkpoint",
    **_CHECKPOINT_FILE,
)
def checkpoint(request: Request, caller: Caller, job_id: str, step: str) -> Response:
    """θ and everything else that the run needs to continue from this step, as a safetensors file."""
    job = found_job(caller, job_id).job
    with transaction() as session:
        found = [one for one in jobs.checkpoints(session, job.id) if str(one[0].step) == step]
    if not found:
        raise Problem("not_found", f"The job keeps no checkpoint of step {step[:20]}: list them.")
    kept, sha256, size = found[0]
    return file_reply(request, kept.blob_id, sha256, size, f"{job.id}-{kept.step}.safetensors")


@router.head(
    "/{job_id}/initialization",
    dependencies=[needs("jobs:read")],
    summary="Size and digest of the initialization",
    **_INITIALIZATION_FILE,
)
@router.get(
    "/{job_id}/initialization",
    dependencies=[needs("jobs:read")],
    summary="Download the learned initialization",
    **_INITIALIZATION_FILE,
)
def initialization(request: Request, caller: Caller, job_id: str) -> Response:
    """θ as a safetensors file, one tensor per parameter. Its metadata hold the spec, so the file alone rebuilds the model."""
    job, sha256, size, _ = found_job(caller, job_id)
    if job.initialization_blob_id is None or sha256 is None or size is None:
        raise Problem("no_initialization", f"The job is {job.state}: only a succeeded job has an initialization.")
    return file_reply(request, job.initialization_blob_id, sha256, size, f"{job.id}.safetensors")
