"""The HTTP face: `uvicorn service.main:app`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

import amaml
from service.adaptations import endpoints as adaptations
from service.catalogue import endpoints as catalogue
from service.dashboard import endpoints as dashboard
from service.datasets import endpoints as datasets
from service.http import access, problems
from service.http.lingering import Lingering
from service.http.notifications import Waiters
from service.http.rate_limits import RateLimit
from service.http.routes import api_routes
from service.jobs import endpoints as jobs
from service.jobs import event_endpoints as events
from service.jobs import result_endpoints as results
from service.keys import endpoints as api_keys
from service.keys.authentication import Recent, authenticated, declared_scopes
from service.monitoring import health, prometheus
from service.reference import openapi as reference
from service.studies import endpoints as studies
from service.usage import endpoints as usage
from service.webhooks import endpoints as webhooks
from service.webhooks.settings import settings as webhook_settings
from service.workers import endpoints as workers

PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json"}) | dashboard.PATHS
"""Paths that need no key. Every other path needs one; a test checks all routes."""

DESCRIPTION = """\
Meta-training as a service: submit a family of related tasks, get the initialization of a network from which every
task of the family trains quickly.

Every call except the health checks needs an API key: `Authorization: Bearer amaml_…`. Errors are RFC 9457 problem
documents: `code` is for programs, `detail` says what to do, and `errors` point into the body.
Lists come in pages: pass a page's `next_cursor` as `cursor` to get the next page. Times are RFC 3339 in UTC.
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    webhook_settings()  # fails now if they are invalid, and not when the first webhook is made
    app.state.waiters = Waiters()
    app.state.waiters.start()
    yield
    app.state.waiters.stop()


def _operation_id(route: APIRoute) -> str:
    """Stays the same from version to version, for clients that are generated from the OpenAPI document."""
    method = min(route.methods or {"GET"})
    if not route.include_in_schema:
        return f"{method.lower()} {route.path}"
    words = [word for word in route.path.strip("/").replace("-", "_").split("/") if not word.startswith("{")]
    one = "_one" if route.path.endswith("}") else ""
    return "_".join([method.lower(), *words[-2 if words[0] == "v1" and len(words) > 2 else -1 :]]) + one


def build() -> FastAPI:
    access.configure_log()
    app = FastAPI(
        title="A-MAML",
        version=amaml.__version__,
        summary="Adjoint MAML as a REST service.",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the dashboard's router serves it, from files of this installation
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        # Slashes are as the reference says: a redirect would lose a body.
        redirect_slashes=False,
    )
    app.state.rate_limit = RateLimit()
    app.state.recent = Recent()
    protected = APIRouter(dependencies=[Depends(authenticated)])
    for resource in (
        jobs,
        events,
        results,
        adaptations,
        studies,
        datasets,
        catalogue,
        workers,
        webhooks,
        api_keys,
        usage,
        prometheus,
    ):
        protected.include_router(resource.router)
    for route in api_routes(protected.routes):
        if len(declared_scopes(route)) != 1:
            raise RuntimeError(
                f"{route.path} must name one scope: dependencies=[needs(…)] with one of service.keys.scopes"
            )
    app.include_router(protected)
    # The operation's id is part of the contract: programs are generated from it.
    job_changed = app.webhooks.post(
        "job", status_code=204, summary="A job changed its state", operation_id="toldjob_post"
    )
    job_changed(webhooks.job_event)
    app.include_router(health.router)
    app.include_router(dashboard.router)
    app.add_middleware(Lingering)
    app.add_middleware(access.Access)
    problems.install(app)
    reference.install(app)
    return app


app = build()
