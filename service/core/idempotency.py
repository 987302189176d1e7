"""Idempotency keys: a request that is sent again with the same key is not done again, and gets the first one's answer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.core.refusals import Refused
from service.core.tables import IdempotencyKey

PATIENCE_MS: Final = 2_000
KEPT: Final = timedelta(hours=24)


class InFlight(Refused):
    """The first request with this key hasn't been committed yet."""

    code = "idempotency_in_flight"
    retry_after = 1

    def __init__(self) -> None:
        super().__init__("The first request with this Idempotency-Key isn't finished: send it again in a second.")


class Mismatch(Refused):
    """The key was used for another request."""

    code = "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request: choose a new key for a new one.")


def take(session: Session, workspace_id: UUID, key: str, request_sha256: str) -> dict[str, Any] | None:
    """The answer of the first request with this key; None if this is the first, which must `keep` its answer in this transaction.

    If two come at once, the second waits here until the first is committed or rolled back. Raises InFlight, Mismatch.
    """
    session.execute(text(f"SET LOCAL lock_timeout = {PATIENCE_MS}"))
    row = insert(IdempotencyKey).values(workspace_id=workspace_id, key=key, request_sha256=request_sha256, response={})
    try:
        first = session.scalar(row.on_conflict_do_nothing().returning(IdempotencyKey.key)) is not None
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise InFlight from None
        raise
    session.execute(text("SET LOCAL lock_timeout = DEFAULT"))
    if first:
        return None
    query = select(IdempotencyKey).where(IdempotencyKey.workspace_id == workspace_id, IdempotencyKey.key == key)
    stored = session.scalars(query).one_or_none()
    if stored is None:
        raise InFlight  # it expired in this very moment: the next try is the first
    if stored.request_sha256 != request_sha256:
        raise Mismatch
    return stored.response


def keep(session: Session, workspace_id: UUID, key: str, response: dict[str, Any]) -> None:
    """Stores the answer for later requests with this key."""
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.workspace_id == workspace_id, IdempotencyKey.key == key)
        .values(response=response)
    )


def expire(session: Session) -> None:
    """Deletes old keys: a request with one of them counts as new."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - KEPT))
