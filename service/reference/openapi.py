"""The OpenAPI document: FastAPI's own, with what it doesn't know: bodies, examples, problems, scopes, rate limits."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.bodies import DescribedBody
from service.http.examples import example
from service.http.problems import ProblemDocument
from service.http.routes import api_routes
from service.keys.authentication import declared_scopes

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
    operations = [
        (route, document["paths"][route.path][method.lower()])
        for route in api_routes(app.routes)
        if route.include_in_schema
        for method in route.methods or ()
    ]
    taken: set[type[BaseModel]] = set()
    for route, operation in operations:
        taken |= _with_body(route, operation)
        _with_examples(route, operation)
    schemas.update(_schemas(taken))
    # A job's spec is one, though it is answered as it was stored, without being read anew.
    for name in ("JobDocument", "DryRunDocument"):
        schemas[name]["properties"]["spec"] = {"$ref": "#/components/schemas/JobSpec"}
    for route, operation in operations:
        _without_framework_errors(operation["responses"])
        scopes = declared_scopes(route)
        if scopes:
            # OpenAPI 3.1 has room here for what a key must be allowed to do.
            operation["security"] = [{"API key": scopes}]
            _with_rate_limit(operation["responses"])
    for path in document["paths"].values():
        for status in ("206", "416"):  # a HEAD has no ranges
            path.get("head", {}).get("responses", {}).pop(status, None)
    for message in document["webhooks"].values():
        # Receivers answer as they like: FastAPI's idea of an error isn't theirs.
        message["post"]["responses"].pop("422")
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _with_body(route: APIRoute, operation: dict[str, Any]) -> set[type[BaseModel]]:
    """Describes the body that a dependency of the route reads; gives the models whose schemas that refers to."""
    models: set[type[BaseModel]] = set()
    for dependency in route.dependant.dependencies:
        body: Any = dependency.call
        if isinstance(body, DescribedBody):
            operation["requestBody"] = body.described()
            models |= {*body.models()}
    return models


def _with_examples(route: APIRoute, operation: dict[str, Any]) -> None:
    """Gives each answer the example that its route declares, or else its model's. FastAPI has dropped all nulls from them."""
    good = route.status_code or 200
    for status in {good, *route.responses}:
        declared = route.responses.get(status, {})
        model = declared.get("model", route.response_model if status == good else None)
        content = operation["responses"][str(status)].get("content", {}).get("application/json", {})
        if "example" in content:
            content["example"] = declared["content"]["application/json"]["example"]
        elif isinstance(model, type) and issubclass(model, BaseModel):
            content["example"] = example(model)


def _schemas(taken: set[type[BaseModel]]) -> dict[str, Any]:
    """The schemas of what is taken, and of problems: FastAPI knows of neither."""
    wanted = [(model, "validation") for model in sorted(taken, key=lambda model: model.__name__)]
    wanted.append((ProblemDocument, "serialization"))
    _, definitions = models_json_schema(wanted, ref_template=_TEMPLATE)  # type: ignore[arg-type]
    found: dict[str, Any] = definitions["$defs"]
    return found


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
        for name, (description, shown) in _RATE_LIMIT.items():
            response.setdefault("headers", {})[name] = {
                "description": description, "schema": {"type": "string"}, "example": shown,
            }  # fmt: skip
    responses["429"]["headers"]["Retry-After"] = {
        "description": "Seconds to wait.", "schema": {"type": "integer"}, "example": 1,
    }  # fmt: skip
