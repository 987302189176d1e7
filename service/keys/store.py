"""Queries on workspaces and their API keys. A key is shown once; stored are its SHA-256 and its first characters."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core.principal import Principal
from service.core.tables import Workspace
from service.keys.scopes import EVERYTHING
from service.keys.tables import ApiKey

DEFAULT_WORKSPACE: Final = "default"
_SHAPE: Final = re.compile(r"amaml_([0-9a-f]{64})([0-9a-f]{8})")
_SHOWN_CHARACTERS: Final = len("amaml_") + 6
_USE_NOTED_EVERY: Final = timedelta(minutes=1)
_EXPIRED: Final = func.coalesce(ApiKey.expires_at <= func.now(), False)


Refusal = Literal["unknown", "revoked", "expired"]


def new_key() -> str:
    """256 random bits and a checksum, so that a mistyped key is refused without a query."""
    bits = secrets.token_hex(32)
    return f"amaml_{bits}{_checksum(bits)}"


def is_well_formed(key: str) -> bool:
    match = _SHAPE.fullmatch(key)
    return match is not None and _checksum(match[1]) == match[2]


def ensure_workspace(session: Session, name: str) -> UUID:
    """The id of the workspace of that name, which is created if there is none."""
    session.execute(insert(Workspace).values(name=name).on_conflict_do_nothing())
    return session.scalars(select(Workspace.id).where(Workspace.name == name)).one()


def add(
    session: Session,
    workspace_id: UUID,
    name: str,
    scopes: Sequence[str] = (EVERYTHING,),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Adds a key; returns its row, and the key itself, which can't be read again."""
    key = new_key()
    row = ApiKey(
        workspace_id=workspace_id, name=name, key_hash=_hash(key), prefix=key[:_SHOWN_CHARACTERS], scopes=list(scopes),
        expires_at=expires_at,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, key


def principal(session: Session, key: str) -> Principal | None:
    """The key's principal; None if the key isn't valid. Notes its use about once a minute."""
    if not is_well_formed(key):
        return None
    unnoted = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at < func.now() - _USE_NOTED_EVERY)
    row = session.execute(
        select(ApiKey.id, ApiKey.workspace_id, ApiKey.scopes, ApiKey.expires_at, unnoted).where(
            ApiKey.key_hash == _hash(key), ApiKey.revoked_at.is_(None), ~_EXPIRED
        )
    ).one_or_none()
    if row is None:
        return None
    key_id, workspace_id, scopes, expires_at, unnoted_use = row
    if unnoted_use:
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=func.now()))
    return Principal(key_id, workspace_id, tuple(scopes), expires_at)


def refusal(session: Session, key: str) -> Refusal:
    """Why the key has no principal. This reveals nothing: whoever wants to know needs the key itself."""
    row = session.execute(select(ApiKey.revoked_at).where(ApiKey.key_hash == _hash(key))).one_or_none()
    if row is None:
        return "unknown"
    return "revoked" if row.revoked_at is not None else "expired"


def page(session: Session, workspace_id: UUID, before: UUID | None, limit: int | None) -> list[ApiKey]:
    """At most `limit` of the workspace's keys that are older than `before`, newest first, including revoked ones."""
    query = select(ApiKey).where(ApiKey.workspace_id == workspace_id).order_by(ApiKey.id.desc()).limit(limit)
    return list(session.scalars(query.where(ApiKey.id < before) if before else query))


def revoke(session: Session, workspace_id: UUID, key_id: UUID) -> bool:
    """Revokes the key; False if the workspace has none of that id. Revoking it again changes nothing."""
    key = session.scalar(
        update(ApiKey)
        .where(ApiKey.workspace_id == workspace_id, ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey.id)
    )
    return key is not None


def _checksum(bits: str) -> str:
    return f"{zlib.crc32(bits.encode()):08x}"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
