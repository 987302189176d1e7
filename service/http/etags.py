"""ETags of documents: which version a client has seen, and the empty 304 as long as it is the newest (RFC 9110)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Header, Response

IfNoneMatch = Annotated[str | None, Header(description="An ETag seen before.")]

UNCHANGED: Final[dict[int | str, Any]] = {
    304: {"description": "Nothing has changed since the ETag that If-None-Match names."}
}
"""Of an operation's `responses`."""


def tagged(etag: str) -> dict[str, str]:
    """The headers of an answer that has this ETag."""
    return {"ETag": etag, "Cache-Control": "private, no-cache"}


def unchanged(if_none_match: str | None, etag: str) -> Response | None:
    """The 304 where the header names the ETag."""
    seen = if_none_match is not None and names(if_none_match, etag)
    return Response(status_code=304, headers=tagged(etag)) if seen else None


def names(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names the ETag (weak comparison)."""
    listed = [one.strip().removeprefix("W/") for one in header.split(",")]
    return etag.removeprefix("W/") in listed or "*" in listed
