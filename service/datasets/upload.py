"""Receives an uploaded file piece by piece, bounded in size and time, and recognizes its format by its beginning."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from amaml.dataset_format import Detected, detect
from amaml.families.upload import HEAD_BYTES, BadLine
from service.core import blobs
from service.core.settings import settings
from service.http.bodies import refuse_announced_above, refuse_encoded, too_large
from service.http.digests import AnnouncedDigests
from service.http.problems import Problem

SLOWEST: Final = 16 * 1024
"""Bytes per second that an upload must average, so that the largest one ends before unfinished blobs are swept."""
WRITES_AT_ONCE: Final = 4
"""How many pieces a process writes at once. An upload that waits holds one piece in memory; one that writes, a few copies."""
_PIECE_BYTES: Final = 256 * 1024

_writing = asyncio.Semaphore(WRITES_AT_ONCE)


class FileBody:
    """A dependency that refuses a body whose headers announce a form, an encoding, or too many bytes."""

    async def __call__(self, request: Request) -> None:
        refuse_encoded(request)
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise Problem("wrong_media_type", "Send the file itself as the body, not a form: curl --data-binary @FILE.")
        refuse_announced_above(request, settings().max_dataset_bytes)

    def described(self) -> dict[str, Any]:
        schema = {"type": "string", "format": "binary"}
        example = "user,item,rating\n1,10,4.0\n1,11,2.5\n"
        return {
            "required": True,
            "description": "The file as it is. Content-Digest or Repr-Digest (RFC 9530), if sent, is compared with it.",
            "content": {"application/octet-stream": {"schema": schema, "example": example}},
        }

    def models(self) -> tuple[type[BaseModel], ...]:
        return ()


async def take_in(request: Request, writer: blobs.Writer, wanted: str) -> Detected:
    """Writes the body to `writer` and returns its format, which is recognized as soon as the beginning has arrived.

    Raises Problem if the body is too large or too slow, differs from its announced digest, or has not the wanted format.
    """
    digests = AnnouncedDigests(request)
    limit, pause = settings().max_dataset_bytes, settings().upload_pause_seconds
    started = asyncio.get_running_loop().time()
    pieces = aiter(request.stream())
    pending = bytearray()
    received = 0
    detected: Detected | None = None
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces, None), pause)
        except TimeoutError:
            raise Problem("slow_body", f"Nothing arrived for {pause:g} s: send the file again.") from None
        if piece is None:
            break
        received += len(piece)
        if received > limit:
            raise too_large(limit)
        if asyncio.get_running_loop().time() - started > 2 * pause + received / SLOWEST:
            raise Problem(
                "slow_body", f"Fewer than {SLOWEST} bytes per second arrive: send the file over a faster connection."
            )
        digests.update(piece)
        pending += piece
        if detected is None and len(pending) >= HEAD_BYTES:
            detected = _detected(bytes(pending[:HEAD_BYTES]), wanted, whole=False)
        if detected is not None and len(pending) >= _PIECE_BYTES:
            await _write(writer, pending)
    digests.check()
    if detected is None:
        detected = _detected(bytes(pending), wanted, whole=True)
    await _write(writer, pending)
    return detected


async def _write(writer: blobs.Writer, pending: bytearray) -> None:
    async with _writing:
        await run_in_threadpool(writer.write, bytes(pending))
    pending.clear()


def _detected(head: bytes, wanted: str, *, whole: bool) -> Detected:
    try:
        return detect(head, whole=whole, wanted=wanted)
    except BadLine as problem:
        raise Problem(
            "bad_data",
            f"The file can't be read: {problem}.",
            errors=[{"line": problem.line, "detail": problem.detail}],
        ) from None
