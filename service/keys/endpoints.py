"""/v1/api-keys: keys of the caller's workspace."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from service.core.database import transaction
from service.core.principal import Principal
from service.http.bodies import JsonBody
from service.http.named import removed
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.problems import Problem, invalid
from service.http.replies import documented, json_reply, path_id
from service.keys import store as keys
from service.keys.authentication import Caller, needs
from service.keys.scopes import GRANTS, beyond

router = APIRouter(prefix="/v1/api-keys", tags=["API keys"])


_LAST_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""A later end could be in year 10000 in some time zone, which Python's datetime can't represent."""

_SCOPES: Final = ["jobs:*", "datasets:read"]
_END: Final = "2099-01-15T00:00:00Z"

Grant = Literal[GRANTS]  # type: ignore[valid-type]  # the one list of scopes, as a schema's enum


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=200, examples=["notebook"])
    scopes: list[Grant] | None = Field(default=None, min_length=1, max_length=len(GRANTS), examples=[_SCOPES])
    """What it may do: `resource:verb`, `resource:*`, or `*`; null: the same as the calling key."""
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(default=None, examples=[_END])
    """When it expires; null: when the calling key does, if ever."""


class KeyDocument(BaseModel):
    model_config = ConfigDict(title="ApiKey", use_attribute_docstrings=True, from_attributes=True)

    id: UUID
    name: str = Field(examples=["notebook"])
    prefix: str = Field(examples=["amaml_3f9a1c"])
    """The key's first characters, by which it can be recognized."""
    scopes: list[str] = Field(examples=[_SCOPES])
    """What it may do."""
    created_at: datetime
    last_used_at: datetime | None
    """When it was last used, to about a minute."""
    expires_at: datetime | None = Field(examples=[_END])
    """When it expires; null: never."""
    revoked_at: datetime | None


class CreatedKeyDocument(KeyDocument):
    model_config = ConfigDict(title="CreatedApiKey")

    key: str = Field(examples=["amaml_…"])
    """The key itself. It is shown only once: keep it."""


@router.post(
    "",
    dependencies=[needs("keys:admin")],
    status_code=201,
    response_model=CreatedKeyDocument,
    summary="Make an API key",
    responses=documented(
        "broken_json", "slow_body", "too_large", "wrong_media_type", "invalid",
        "beyond_own_key",
        status=201, description="The key, for the only time.",
    ),
)  # fmt: skip
def create(caller: Caller, wanted: Annotated[NewKey, Depends(JsonBody(NewKey))]) -> Response:
    """Makes a key for this workspace. This answer is the only one that shows it; only its hash is stored.

    A key can't have more scopes than the key that makes it, nor expire later.
    """
    scopes, expires_at = _granted(caller, wanted)
    with transaction() as session:
        row, key = keys.add(session, caller.workspace_id, wanted.name, scopes, expires_at)
        shown = KeyDocument.model_validate(row)
    document = CreatedKeyDocument(**shown.model_dump(), key=key)
    return json_reply(document, 201, {"Location": f"/v1/api-keys/{row.id}", "Cache-Control": "no-store"})


@router.get(
    "",
    dependencies=[needs("keys:admin")],
    response_model=Page[KeyDocument],
    summary="List API keys",
    responses=documented("invalid", description="Newest first, revoked ones too."),
)
def page(caller: Caller, limit: Limit = 50, cursor: IdCursor = None) -> Response:
    """The workspace's keys, without the keys themselves."""
    with transaction() as session:
        rows = keys.page(session, caller.workspace_id, cursor, limit + 1)
    return json_reply(page_of(rows, limit, lambda one: one.id, KeyDocument.model_validate))


@router.delete(
    "/{key_id}",
    dependencies=[needs("keys:admin")],
    status_code=204,
    summary="Revoke an API key",
    responses=documented("not_found", "own_key", status=204, description="The key is not accepted any more."),
)
def revoke(request: Request, caller: Caller, key_id: str) -> Response:
    """Revokes the key: at once in this API process, within a second in others. The key that sends the request can't be revoked,
    so that nobody locks themselves out."""
    wanted = path_id(key_id, "API key")
    if wanted == caller.key_id:
        raise Problem("own_key", "This is the key that you use: make another, and revoke this one with that.")
    answer = removed(caller, key_id, "API key", keys.revoke)
    request.app.state.recent.forget()
    return answer


def _granted(caller: Principal, wanted: NewKey) -> tuple[Sequence[str], datetime | None]:
    """Scopes and end of the new key; raises the problem if the caller's key can't grant them."""
    scopes = list(dict.fromkeys(wanted.scopes)) if wanted.scopes is not None else caller.scopes
    lacking = beyond(caller.scopes, scopes)
    if lacking:
        raise Problem(
            "beyond_own_key",
            f"This key lacks {', '.join(lacking)}, so it can't give them to another: name some of those that it has "
            f"({', '.join(caller.scopes)}), or use a key that has more.",
        )
    if wanted.expires_at is None:
        return scopes, caller.expires_at
    if wanted.expires_at <= datetime.now(UTC):
        detail = f"{wanted.expires_at.isoformat()} is past: it must lie in the future, or be null"
        raise invalid([{"pointer": "/expires_at", "detail": detail}])
    if wanted.expires_at >= _LAST_END:
        detail = f"{wanted.expires_at.isoformat()} is too late: it must lie before {_LAST_END.isoformat()}, or be null"
        raise invalid([{"pointer": "/expires_at", "detail": detail}])
    if caller.expires_at is not None and wanted.expires_at > caller.expires_at:
        raise Problem(
            "beyond_own_key",
            f"This key expires at {caller.expires_at.isoformat()}, so it can't make one that lasts until "
            f"{wanted.expires_at.isoformat()}: give an earlier end, or use a key that lasts longer.",
        )
    return scopes, wanted.expires_at
