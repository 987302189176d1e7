"""An answer that comes before the request's body has arrived, made to arrive itself.

A server that answers 413 or 401 and closes, while the client still sends, resets the connection: the client sees an
error of the network in place of the answer. So after such an answer the rest of the body is read and thrown away for
a while, and the connection closed only then (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SOON_SECONDS: Final = 0.1
_SOON_BYTES: Final = 64 * 1024
_MAX_SECONDS: Final = 5.0
_MAX_BYTES: Final = 256 << 20


class Lingering:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Body(receive)

        async def send_and_drain(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.arrived:
                # A small body is there by now or at once, and the connection can go on being used.
                await body.drain(_SOON_SECONDS, _SOON_BYTES)
                if not body.arrived:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if body.arrived or not last:
                await send(message)
                return
            await send({**message, "more_body": True})
            await body.drain(_MAX_SECONDS, _MAX_BYTES)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, body.receive, send_and_drain)


class _Body:
    """The request's body, as it comes in."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.arrived = False
        """All of it did, or the client is gone."""

    async def receive(self) -> Message:
        message = await self._receive()
        self.arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drain(self, seconds: float, size: int) -> None:
        """Reads and drops what comes, until it has arrived or the patience is over."""
        taken = 0
        try:
            async with asyncio.timeout(seconds):
                while not self.arrived and taken < size:
                    taken += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
