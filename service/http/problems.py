"""All errors that the API answers, as RFC 9457 problem documents, and the handlers that turn exceptions into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from service.core import quotas
from service.core.quota_bounds import MEANINGS, Name
from service.core.refusals import BadReference, Refused
from service.http import validation
from service.http.routes import api_routes

MEDIA_TYPE: Final = "application/problem+json"

_LONGEST: Final = 500

# code → (status, title)
CODES: Final[dict[str, tuple[int, str]]] = {
    "broken_json": (400, "The body is not JSON"),
    "bad_header": (400, "A header is malformed"),
    "digest_mismatch": (400, "The body is not the one announced"),
    "unauthenticated": (401, "A valid API key is needed"),
    "missing_scope": (403, "The API key lacks a scope"),
    "quota_exceeded": (403, "The workspace's quota doesn't allow it"),
    "beyond_own_key": (403, "A key can't give more than it has"),
    "not_found": (404, "Not found in this workspace"),
    "no_initialization": (404, "The job has no initialization"),
    "no_weights": (404, "The adaptation has no weights"),
    "method_not_allowed": (405, "The path has no such method"),
    "slow_body": (408, "The body came too slowly"),
    "wrong_state": (409, "The job's state doesn't allow it"),
    "in_use": (409, "Something else still needs it"),
    "too_many": (409, "There are as many as are allowed"),
    "own_key": (409, "A key can't revoke itself"),
    "idempotency_in_flight": (409, "The first request with this Idempotency-Key is still going on"),
    "too_large": (413, "The body is too large"),
    "wrong_media_type": (415, "The body is of another media type"),
    "range_not_satisfiable": (416, "The range lies outside the file"),
    "invalid": (422, "The request is not valid"),
    "bad_data": (422, "The data set is not valid"),
    "idempotency_mismatch": (422, "The Idempotency-Key belongs to another request"),
    "rate_limited": (429, "Too many requests come with this API key"),
    "internal_error": (500, "The server failed"),
    "unavailable": (503, "The service isn't ready"),
}


ALWAYS: Final = ("unauthenticated", "missing_scope", "rate_limited", "unavailable", "internal_error")
"""Codes that every operation which needs a key may answer."""


class FieldProblem(BaseModel):
    pointer: str | None = Field(default=None, examples=["/trajectory/length"])
    """JSON Pointer into the request's body."""
    parameter: str | None = None
    """The query parameter that is not valid, if it is one."""
    line: int | None = None
    """The line of an uploaded file, counted from 1, that is not valid, if it is one."""
    detail: str = Field(examples=["-1.0 is too small: it must be greater than 0"])


class QuotaProblem(BaseModel):
    name: Name
    bound: int
    used: float
    asked: float


class ProblemDocument(BaseModel):
    """RFC 9457. `code` is for programs; `detail` is a sentence that names the remedy."""

    type: str = Field(examples=["urn:amaml:problem:invalid"])
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FieldProblem] | None = None
    quota: QuotaProblem | None = None
    """Of `quota_exceeded`."""


class Problem(Exception):
    """An error that is answered as a problem document, wherever it is raised."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        quota: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors, self.headers = code, detail, list(errors), dict(headers or {})
        self.quota = quota
        self.status, self.title = CODES[code]


def not_found(what: str) -> Problem:
    """The same for what doesn't exist, what belongs to another workspace, and what is no id at all."""
    return Problem("not_found", f"There is no {what} of this id in the workspace.")


_REMEDIES: Final[dict[Name, str]] = {
    "queued_jobs": "wait until some have started, or cancel some",
    "running_jobs": "wait until one has ended",
    "compute_seconds": "make the job smaller, set runtime.max_seconds, cancel jobs that wait, or wait",
    "stored_bytes": "delete data sets and ended jobs",
}


def quota_exceeded(error: quotas.Exceeded) -> Problem:
    return Problem(
        "quota_exceeded",
        f"The workspace's quota {error.name} ({MEANINGS[error.name]}) is {error.bound}; {error.used:.15g} are used and "
        f"{error.asked:.15g} more requested: {_REMEDIES[error.name]}, or ask the operator for more. "
        "GET /v1/usage shows all quotas.",
        quota={"name": error.name, "bound": error.bound, "used": error.used, "asked": error.asked},
    )


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    # A field's name comes from the client and may be a megabyte long, which the answer shouldn't repeat.
    errors = [{name: _clipped(value) for name, value in error.items()} for error in errors]
    where = [error.get("pointer") or error.get("parameter") or "the body" for error in errors]
    return Problem("invalid", f"Not valid: {', '.join(dict.fromkeys(where))}. See errors.", errors=errors)


def _clipped(value: Any) -> Any:
    return f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value


def answer(request_id: str | None, problem: Problem) -> JSONResponse:
    document = {
        "type": f"urn:amaml:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        document["errors"] = problem.errors
    if problem.quota:
        document["quota"] = problem.quota
    return JSONResponse(document, problem.status, problem.headers, MEDIA_TYPE)


def declared(*codes: str) -> dict[int | str, dict[str, Any]]:
    """These problems as OpenAPI responses."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = CODES[code]
        earlier = responses.get(status)
        responses[status] = {
            "description": f"{earlier['description']}; `{code}`: {title}" if earlier else f"`{code}`: {title}",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
    return responses


def _methods(app: FastAPI, path: str) -> set[str]:
    """The methods of all routes to this path: the framework names those of one route only."""
    matching = [route for route in api_routes(app.routes) if route.path_regex.match(path)]
    return {method for route in matching for method in route.methods or ()}


def install(app: FastAPI) -> None:
    """Makes `app` answer exceptions as problems. Others become a 500 in the middleware of service.http.access."""

    def respond(request: Request, problem: Problem) -> JSONResponse:
        return answer(getattr(request.state, "request_id", None), problem)

    def raised(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return respond(request, error)

    def unrouted(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = ", ".join(sorted(_methods(app, request.url.path))) or (error.headers or {})["Allow"]
            problem = Problem(
                "method_not_allowed",
                f"{request.method} is not a method of {request.url.path}: use {allowed}.",
                headers={"Allow": allowed},
            )
        elif error.status_code == 404:
            problem = Problem("not_found", f"There is nothing at {request.url.path}: see /docs for all paths.")
        else:
            problem = Problem("bad_header", str(error.detail), headers=error.headers)
        return respond(request, problem)

    def wrong_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, invalid(validation.parameter_errors(error.errors())))

    def database_away(request: Request, _: Exception) -> JSONResponse:
        detail = "The database doesn't answer: try again in a few seconds."
        return respond(request, Problem("unavailable", detail, headers={"Retry-After": "2"}))

    def too_much(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, quotas.Exceeded)
        return respond(request, quota_exceeded(error))

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return respond(request, Problem(error.code, str(error), headers=headers))

    def bad_reference(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, BadReference)
        return respond(request, invalid([{"pointer": validation.pointer(error.field), "detail": error.detail}]))

    app.add_exception_handler(Problem, raised)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(BadReference, bad_reference)
    app.add_exception_handler(quotas.Exceeded, too_much)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(RequestValidationError, wrong_parameters)
    app.add_exception_handler(OperationalError, database_away)
    app.add_exception_handler(PoolTimeout, database_away)
