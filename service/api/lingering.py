"""An answer that comes before the request's body has arrived, made to arrive itself.

A server that answers 413 or 401 and closes, while the client still sends, resets the connection: the client sees an
error of the network in place of the answer. So after such an answer the rest of the body is read and thrown away for
a while, and the connection closed only then (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_SECONDS: Final = 5.0
MAX_BYTES: Final = 256 << 20


class Lingering:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        arrived = False

        async def watch() -> Message:
            nonlocal arrived
            message = await receive()
            arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def send_and_drain(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False) or arrived:
                await send(message)
                return
            await send({**message, "more_body": True})
            await _drain(watch, lambda: arrived)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, watch, send_and_drain)


async def _drain(receive: Receive, arrived: object) -> None:
    assert callable(arrived)
    taken = 0
    try:
        async with asyncio.timeout(MAX_SECONDS):
            while not arrived() and taken < MAX_BYTES:
                taken += len((await receive()).get("body", b""))
    except TimeoutError:
        return  # patience is over: the connection closes


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
