"""The OpenAPI document: FastAPI's own, with the schemas of bodies that are read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from amaml.spec import JobSpec
from service.api.api_keys import NewKey
from service.api.problems import ProblemDocument

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
        tags=app.openapi_tags,
    )  # fmt: skip
    schemas: dict[str, Any] = document["components"]["schemas"]
    wanted = [(JobSpec, "validation"), (NewKey, "validation"), (ProblemDocument, "serialization")]
    _, by_hand = models_json_schema(wanted, ref_template=_TEMPLATE)  # type: ignore[arg-type]
    schemas.update(by_hand["$defs"])
    # A job's spec is one, though it is answered as it was stored, without being read anew.
    for name in ("JobDocument", "DryRunDocument"):
        schemas[name]["properties"]["spec"] = {"$ref": "#/components/schemas/JobSpec"}
    for operations in document["paths"].values():
        for operation in operations.values():
            _without_framework_errors(operation["responses"])
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
