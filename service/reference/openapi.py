"""The OpenAPI document: FastAPI's own, with the schemas of bodies that are read by hand."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from amaml.adaptation_request import AdaptationRequest
from amaml.spec import JobSpec
from service.http.problems import ProblemDocument
from service.keys.authentication import declared_scopes
from service.keys.endpoints import NewKey
from service.studies.schemas import NewStudy
from service.webhooks.schemas import NewWebhook, WebhookChange

_TEMPLATE = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Makes `app.openapi()` and /openapi.json give the whole document; made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes,
        tags=app.openapi_tags, webhooks=app.webhooks.routes,
    )  # fmt: skip
    schemas: dict[str, Any] = document["components"]["schemas"]
    taken = [
        (model, "validation") for model in (JobSpec, AdaptationRequest, NewKey, NewStudy, NewWebhook, WebhookChange)
    ]
    wanted = [*taken, (ProblemDocument, "serialization")]
    _, by_hand = models_json_schema(wanted, ref_template=_TEMPLATE)  # type: ignore[arg-type]
    schemas.update(by_hand["$defs"])
    # A job's spec is one, though it is answered as it was stored, without being read anew.
    for name in ("JobDocument", "DryRunDocument"):
        schemas[name]["properties"]["spec"] = {"$ref": "#/components/schemas/JobSpec"}
    for operations in document["paths"].values():
        for operation in operations.values():
            _without_framework_errors(operation["responses"])
        for status in ("206", "416"):  # a HEAD has no ranges
            operations.get("head", {}).get("responses", {}).pop(status, None)
    for message in document["webhooks"].values():
        # Receivers answer as they like: FastAPI's idea of an error isn't theirs.
        message["post"]["responses"].pop("422")
    for route, scopes in declared_scopes(app.routes):
        for method in (route.methods or ()) if scopes else ():
            # OpenAPI 3.1 has room here for what a key must be allowed to do.
            operation = document["paths"][route.path][method.lower()]
            operation["security"] = [{"API key": scopes}]
            _with_rate_limit(operation["responses"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _without_framework_errors(responses: dict[str, Any]) -> None:
    """FastAPI declares a 422 of its own form, which never leaves this service: ours takes its place."""
    content = responses.get("422", {}).get("content", {})
    content.pop("application/json", None)
    if "422" in responses and not content:
        responses["422"] = {
            "description": "`invalid`: The request is not valid",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }


_RATE_LIMIT: Final = {
    "RateLimit-Policy": (
        "The most requests at once (q), and the seconds in which as many come anew (w).",
        '"key";q=2000;w=10',
    ),
    "RateLimit": ("Requests that may follow at once (r), and seconds until all of q may (t).", '"key";r=1998;t=1'),
}


def _with_rate_limit(responses: dict[str, Any]) -> None:
    """Answers to a known key say how it stands; where the operator sets no limit, they don't."""
    for status, response in responses.items():
        if status == "401":
            continue
        for name, (description, example) in _RATE_LIMIT.items():
            response.setdefault("headers", {})[name] = {
                "description": description, "schema": {"type": "string"}, "example": example,
            }  # fmt: skip
    responses["429"]["headers"]["Retry-After"] = {
        "description": "Seconds to wait.", "schema": {"type": "integer"}, "example": 1,
    }  # fmt: skip
