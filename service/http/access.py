"""Middleware around every request: its id, the headers of every answer, its line in the access log, its metrics, row security in
the database, and the 500 for exceptions that nothing else has handled."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import Processor

from service.core import row_security
from service.core.settings import settings
from service.http.problems import Problem, answer

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET: Final = frozenset({"/healthz", "/readyz"})
"""Paths that monitoring requests every second: logged only if they fail."""

registry = CollectorRegistry()
_requests = Counter("amaml_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry)
_seconds = Histogram(
    "amaml_http_request_seconds",
    "Time from a request's head to the end of its answer.",
    ["method", "route"],
    registry=registry,
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)


def configure_log() -> None:
    """One line per record, as text or JSON. Tracebacks don't show the frames' variables, as API keys are among them."""
    plain = structlog.dev.plain_traceback
    writing: tuple[Processor, ...] = (
        (structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, exception_formatter=plain),)
        if settings().log == "text"
        else (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *writing,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


log = structlog.get_logger()


class Access:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = {"x-request-id": request_id, **scope["state"].get("headers", {})}
                message["headers"] = [*message["headers"], *((n.lower().encode(), v.encode()) for n, v in more.items())]
            await send(message)

        try:
            with row_security.confined():
                await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            log.exception("request failed", request_id=request_id, path=scope["path"])
            if status:
                raise  # part of the answer has been sent: only the connection can still be closed
            problem = Problem("internal_error", f"The server failed; its log gives the reason under {request_id}.")
            await answer(request_id, problem)(scope, receive, send_with_id)
        finally:
            _account(scope, status, time.perf_counter() - started, request_id)


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) else None
    return None


def _account(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    method: str = scope["method"] if scope["method"] in _METHODS else "other"
    # The route's template, not the path: otherwise each id would make a time series of its own.
    route = getattr(scope.get("route"), "path", "unrouted")
    _requests.labels(method, route, status).inc()
    _seconds.labels(method, route).observe(seconds)
    if scope["path"] in _QUIET and status == 200:
        return
    principal = scope["state"].get("principal")
    log.info(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(1000 * seconds, 1),
        request_id=request_id,
        key=str(principal.key_id) if principal else None,
    )


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
