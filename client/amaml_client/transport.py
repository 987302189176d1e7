"""What both clients tell httpx."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, TypedDict

import httpx2

from amaml_client.events import EVENT_STREAM
from amaml_client.exchange import Reply, Send
from amaml_client.settings import settings


class Options(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: httpx2.Timeout
    trust_env: bool


def options(url: str | None, key: str | None) -> Options:
    """Address, key and patience. Redirects aren't followed: the key goes to the named server alone."""
    found = settings(url, key)
    headers = {"Accept": "application/json", "User-Agent": f"amaml-client/{version('amaml-client')}"}
    if found.key:
        headers["Authorization"] = f"Bearer {found.key}"
    return Options(
        base_url=found.url,
        headers=headers,
        timeout=httpx2.Timeout(60.0, connect=5.0),
        trust_env=not found.local,
    )


def arguments(send: Send) -> dict[str, Any]:
    """The request, as httpx's `stream` takes it."""
    return {
        "method": send.method,
        "url": send.path,
        "params": dict(send.params),
        "headers": send.all_headers(),
        "json": send.json,
    }


def head(response: httpx2.Response) -> Reply:
    return Reply(response.status_code, response.headers)


def reply(response: httpx2.Response) -> Reply:
    """The answer with its body, which has been read."""
    return Reply(response.status_code, response.headers, response.content)


def is_event_stream(response: httpx2.Response) -> bool:
    return response.is_success and response.headers.get("content-type", "").startswith(EVENT_STREAM)
