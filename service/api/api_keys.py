"""/v1/api-keys: keys of the caller's workspace."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api import examples
from service.api.authentication import Caller
from service.api.bodies import json_body
from service.api.pages import Cursor, Limit, Page, cut, decode_id, encode
from service.api.problems import Problem, not_found
from service.api.replies import documented, json_reply, path_id
from service.store import keys
from service.store.database import transaction

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"])


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=200)


class KeyDocument(BaseModel):
    model_config = ConfigDict(title="ApiKey", use_attribute_docstrings=True, from_attributes=True)

    id: UUID
    name: str
    prefix: str
    """The key's first characters, to tell it from others."""
    created_at: datetime
    last_used_at: datetime | None
    """To about a minute."""
    revoked_at: datetime | None


class CreatedKeyDocument(KeyDocument):
    model_config = ConfigDict(title="CreatedApiKey")

    key: str
    """The key itself. Nobody can read it again: keep it."""


@router.post(
    "",
    status_code=201,
    response_model=CreatedKeyDocument,
    summary="Make an API key",
    responses=documented(
        {**examples.API_KEY, "key": "amaml_…"}, "broken_json", "slow_body", "too_large", "wrong_media_type", "invalid",
        status=201, description="The key, for the only time.",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/NewKey"}, "example": {"name": "notebook"}}
            },
        }
    },
)  # fmt: skip
def create(caller: Caller, wanted: Annotated[NewKey, Depends(json_body(NewKey))]) -> Response:
    """A key that opens this workspace. The answer shows it once; only its hash is stored."""
    with transaction() as session:
        row, key = keys.add(session, caller.workspace_id, wanted.name)
        shown = KeyDocument.model_validate(row)
    document = CreatedKeyDocument(**shown.model_dump(), key=key)
    return json_reply(document, 201, {"Location": f"/v1/api-keys/{row.id}", "Cache-Control": "no-store"})


@router.get(
    "",
    response_model=Page[KeyDocument],
    summary="List API keys",
    responses=documented(examples.page(examples.API_KEY), "invalid", description="Newest first, revoked ones too."),
)
def page(caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The workspace's keys, without the keys themselves."""
    with transaction() as session:
        rows = keys.page(session, caller.workspace_id, decode_id(cursor), limit + 1)
    found, more = cut(rows, limit)
    next_cursor = encode(found[-1].id) if more else None
    return json_reply(Page(data=[KeyDocument.model_validate(one) for one in found], next_cursor=next_cursor))


@router.delete(
    "/{key_id}",
    status_code=204,
    summary="Revoke an API key",
    responses=documented(None, "not_found", "own_key", status=204, description="It opens nothing any more."),
)
def revoke(caller: Caller, key_id: str) -> Response:
    """Ends the key at once. A key can't revoke itself, so that nobody locks themselves out."""
    wanted = path_id(key_id, "API key")
    if wanted == caller.key_id:
        raise Problem("own_key", "This is the key that you use: make another, and revoke this one with that.")
    with transaction() as session:
        found = keys.revoke(session, caller.workspace_id, wanted)
    if not found:
        raise not_found("API key")
    return Response(status_code=204)
