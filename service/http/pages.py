"""Lists in pages: newest first, each page from where the last one ended, whatever was added meanwhile."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel

from service.http.problems import Problem, invalid

ItemT = TypeVar("ItemT")

Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
Cursor = Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before; opaque.")]


class Page(BaseModel, Generic[ItemT]):
    data: list[ItemT]
    next_cursor: str | None = None
    """Give it as `cursor` for the next page; null on the last one."""


def encode(position: UUID | int) -> str:
    raw = position.bytes if isinstance(position, UUID) else str(position).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_id(cursor: str | None) -> UUID | None:
    """The id after which the page starts; raises Problem for a cursor that isn't ours."""
    if cursor is None:
        return None
    raw = _raw(cursor)
    if len(raw) != 16:
        raise _foreign(cursor)
    return UUID(bytes=raw)


def decode_number(cursor: str | None) -> int:
    """The number after which the page starts; raises Problem for a cursor that isn't ours."""
    if cursor is None:
        return 0
    raw = _raw(cursor)
    if not raw.isdigit() or len(raw) > 18:
        raise _foreign(cursor)
    return int(raw)


def cut(rows: Sequence[ItemT], limit: int) -> tuple[Sequence[ItemT], bool]:
    """Of `limit` + 1 rows asked for: those of the page, and whether more follow."""
    return rows[:limit], len(rows) > limit


def _raw(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _foreign(cursor) from None


def _foreign(cursor: str) -> Problem:
    shown = repr(cursor[:40])
    detail = f"{shown} is no cursor of this list: give a page's next_cursor as it came, or none"
    return invalid([{"parameter": "cursor", "detail": detail}])
