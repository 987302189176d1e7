"""Lists in pages. Each page begins where the one before it ended, whatever was added meanwhile."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Generic, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

RowT = TypeVar("RowT")
ItemT = TypeVar("ItemT")

_LONGEST: Final = 100


def _id(cursor: Any) -> Any:
    """The id that a cursor stands for; raises ValueError for a cursor that isn't ours."""
    raw = _raw(cursor)
    if len(raw) != 16:
        raise _foreign(cursor)
    return UUID(bytes=raw)


def _number(cursor: Any) -> Any:
    """The number that a cursor stands for; raises ValueError for a cursor that isn't ours."""
    raw = _raw(cursor)
    if not raw.isdigit() or len(raw) > 18:
        raise _foreign(cursor)
    return int(raw)


_SCHEMA: Final = WithJsonSchema({"anyOf": [{"type": "string", "maxLength": _LONGEST}, {"type": "null"}]})
_DESCRIBED: Final = Query(description="`next_cursor` of the page before; opaque.")

Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
IdCursor = Annotated[UUID | None, BeforeValidator(_id), _SCHEMA, _DESCRIBED]
"""The id after which the page begins."""
NumberCursor = Annotated[int | None, BeforeValidator(_number), _SCHEMA, _DESCRIBED]
"""The number after which the page begins."""


class Page(BaseModel, Generic[ItemT]):
    data: list[ItemT]
    next_cursor: str | None = Field(
        default=None, description="Give it as `cursor` for the next page; null on the last."
    )


def page_of(
    rows: Sequence[RowT], limit: int, position: Callable[[RowT], UUID | int], document: Callable[[RowT], ItemT]
) -> Page[ItemT]:
    """The page that shows the first `limit` of the rows. The caller has asked for one row more, to know whether more follow.

    `position` is what the next page's cursor stands for, and `document` what the API shows of a row.
    """
    shown = rows[:limit]
    next_cursor = _encoded(position(shown[-1])) if len(rows) > limit else None
    return Page(data=[document(row) for row in shown], next_cursor=next_cursor)


def _encoded(position: UUID | int) -> str:
    raw = position.bytes if isinstance(position, UUID) else str(position).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(cursor: Any) -> bytes:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _foreign(cursor) from None


def _foreign(cursor: str) -> ValueError:
    return ValueError(f"{cursor[:40]!r} is no cursor of this list: give a page's next_cursor as it came, or none")
