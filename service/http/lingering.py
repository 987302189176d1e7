"""Makes sure that the client receives an answer which is sent before the request's body has arrived.

A server that answers 413 or 401 and closes the connection while the client is still sending resets it, and the client sees a
network error instead of the answer. So after such an answer the rest of the body is read and discarded for a while, and only
then is the connection closed (RFC 9112, section 9.6).
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
                # A small body has arrived by now or will at once: then the connection can be kept.
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
    """The request's body while it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.arrived = False
        """Whether all of it has arrived, or the client has disconnected."""

    async def receive(self) -> Message:
        message = await self._receive()
        self.arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drain(self, seconds: float, size: int) -> None:
        """Reads and discards the body, until all of it has arrived or a limit is reached."""
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
