"""The application's routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.routing import APIRoute


def api_routes(routes: Sequence[Any]) -> Iterator[APIRoute]:
    """Each of them, however deeply routers include each other."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from api_routes(route.original_router.routes)
