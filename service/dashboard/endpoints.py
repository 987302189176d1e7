"""`/`, the dashboard, and `/docs`, the API's reference for people: static files, served without a key.

Nothing is loaded from another host. The pages hold no data: they ask the API for it, with the key that the user gives them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from fastapi import APIRouter, Request, Response

from service.http.etags import names
from service.http.problems import Problem

router = APIRouter(include_in_schema=False)

PATHS: Final = frozenset({"/", "/dashboard/{name}", "/docs", "/docs/{name}"})

_DASHBOARD: Final = "service.dashboard"
_SWAGGER: Final = "fastapi_swagger"  # Swagger UI's files, in a package of their own
FILES: Final[dict[str, tuple[str, str, str]]] = {
    **{
        f"/dashboard/{name}": (_DASHBOARD, "static", name)
        for name in (
            "api.js", "chart.css", "chart.js", "curves.js", "element.js", "format.js", "icon.svg", "job.js", "jobs.js", "main.js",
            "scale.js", "studies.js", "style.css", "workers.js",
        )
    },
    "/dashboard/metrics.js": (_DASHBOARD, "static", "metrics.js"),
    "/docs/reference.js": (_DASHBOARD, "static", "reference.js"),
    "/docs/swagger-ui-bundle.js": (_SWAGGER, "resources", "swagger-ui-bundle.js"),
    "/docs/swagger-ui.css": (_SWAGGER, "resources", "swagger-ui.css"),
    "/": (_DASHBOARD, "static", "index.html"),
    "/docs": (_DASHBOARD, "static", "reference.html"),
}  # fmt: skip
"""Path → package, folder and name of the file. A list, so that no request ever names a file."""

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_OWNFILES_ONLY: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
# Swagger UI writes style attributes; the dashboard writes none.
_POLICY: Final = {"/docs": _OWNFILES_ONLY + "style-src 'self' 'unsafe-inline'"}
_STRICT: Final = _OWNFILES_ONLY + "style-src 'self'"


class _File(NamedTuple):
    content: bytes
    etag: str


@cache
def _file(path: str) -> _File:
    package, folder, name = FILES[path]
    content = (resources.files(package) / folder / name).read_bytes()
    return _File(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/docs", methods=["GET", "HEAD"])
@router.api_route("/dashboard/{name}", methods=["GET", "HEAD"])
@router.api_route("/docs/{name}", methods=["GET", "HEAD"])
def static(request: Request) -> Response:
    """The file, or 304 where the browser has it: it asks each time, so a new version is seen at once."""
    path = request.url.path
    if path not in FILES:
        raise Problem("not_found", "There is no such file.")
    content, etag = _file(path)
    headers = {
        "ETag": etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY.get(path, _STRICT),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    suffix = FILES[path][2].rpartition(".")[2]
    return Response(content, headers=headers, media_type=_TYPES[suffix])
