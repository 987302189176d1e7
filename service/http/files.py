"""A stored file as an answer: whole, a range of it, only its headers, or the answer that it hasn't changed (RFC 9110)."""

from __future__ import annotations

import base64
import re
from typing import Any, Final
from uuid import UUID

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.core import blobs
from service.http.etags import names
from service.http.problems import ALWAYS, Problem, declared

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
MEDIA_TYPE: Final = "application/octet-stream"


def file_reply(request: Request, blob_id: UUID, sha256: str, size: int, name: str) -> Response:
    """The blob as a download; its strong ETag is its sha256."""
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    if names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = _wanted_range(request, etag, size)
    if wanted is not None:
        start, end, status = *wanted, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(None, status, headers, MEDIA_TYPE)
    try:
        pieces = blobs.read(blob_id, start, end)
    except blobs.BlobNotFound:
        raise Problem("not_found", "It was deleted just now.") from None
    return StreamingResponse(pieces, status, headers, MEDIA_TYPE)


def _wanted_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """[start, end) of the requested range; None if the whole file is wanted. Raises the 416 problem."""
    if request.method != "GET":
        return None  # RFC 9110, 14.2: only GET has ranges
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or match[1] == match[2] == "":
        return None
    if request.headers.get("if-range", etag) != etag:
        return None
    first, last = match[1], match[2]
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise Problem(
            "range_not_satisfiable",
            f"The range lies outside the file, which has {size} bytes.",
            headers={"Content-Range": f"bytes */{size}", "ETag": etag},
        )
    return start, end


def documented_file(*codes: str) -> dict[int | str, Any]:
    """An operation's `responses` where the answer is a file."""
    binary = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "(bytes)"}}}
    digest = {
        "ETag": {"schema": {"type": "string"}, "description": "sha256 of the file, in quotes; strong."},
        "Repr-Digest": {"schema": {"type": "string"}, "description": "RFC 9530; sha-256."},
    }
    return {
        200: {"description": "The file.", "headers": digest, **binary},
        206: {"description": "The requested range of it.", "headers": digest, **binary},
        304: {"description": "The file is the one that If-None-Match names."},
        **declared(*ALWAYS, "range_not_satisfiable", *codes),
    }
