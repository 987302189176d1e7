"""Workspaces and their API keys. A key is shown once; the store keeps its SHA-256 and its first characters."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.store.tables import ApiKey, Workspace

DEFAULT_WORKSPACE: Final = "default"
_SHAPE: Final = re.compile(r"amaml_([0-9a-f]{64})([0-9a-f]{8})")
_SHOWN_CHARACTERS: Final = len("amaml_") + 6
_USE_NOTED_EVERY: Final = timedelta(minutes=1)


class Principal(NamedTuple):
    """Who calls: a key and the workspace that it opens."""

    key_id: UUID
    workspace_id: UUID


def new_key() -> str:
    """256 random bits and a checksum, so that a mistyped key is refused without asking the database."""
    bits = secrets.token_hex(32)
    return f"amaml_{bits}{_checksum(bits)}"


def is_well_formed(key: str) -> bool:
    match = _SHAPE.fullmatch(key)
    return match is not None and _checksum(match[1]) == match[2]


def ensure_workspace(session: Session, name: str) -> UUID:
    """The workspace's id; makes it where there is none of that name."""
    session.execute(insert(Workspace).values(name=name).on_conflict_do_nothing())
    return session.scalars(select(Workspace.id).where(Workspace.name == name)).one()


def add(session: Session, workspace_id: UUID, name: str) -> tuple[ApiKey, str]:
    """A new key's row and the key itself, which nobody can read again."""
    key = new_key()
    row = ApiKey(workspace_id=workspace_id, name=name, key_hash=_hash(key), prefix=key[:_SHOWN_CHARACTERS])
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, key


def principal(session: Session, key: str) -> Principal | None:
    """Whom the key belongs to; None for one that is unknown or revoked. Notes the use about once a minute."""
    if not is_well_formed(key):
        return None
    unnoted = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at < func.now() - _USE_NOTED_EVERY)
    row = session.execute(
        select(ApiKey.id, ApiKey.workspace_id, unnoted).where(
            ApiKey.key_hash == _hash(key), ApiKey.revoked_at.is_(None)
        )
    ).one_or_none()
    if row is None:
        return None
    key_id, workspace_id, unnoted_use = row
    if unnoted_use:
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=func.now()))
    return Principal(key_id, workspace_id)


def page(session: Session, workspace_id: UUID, before: UUID | None, limit: int) -> list[ApiKey]:
    """The workspace's keys, newest first, revoked ones too; those older than `before`."""
    query = select(ApiKey).where(ApiKey.workspace_id == workspace_id).order_by(ApiKey.id.desc()).limit(limit)
    return list(session.scalars(query.where(ApiKey.id < before) if before else query))


def revoke(session: Session, workspace_id: UUID, key_id: UUID) -> bool:
    """Ends the key; False where the workspace has none of that id. Revoking again changes nothing."""
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
