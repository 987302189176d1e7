"""What is forgotten after a while."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func
from sqlalchemy.orm import Session

from service.store.tables import IdempotencyKey

IDEMPOTENCY_KEYS_LAST = timedelta(hours=24)


def expire_idempotency_keys(session: Session) -> None:
    """Forgets old idempotency keys: the same key would submit anew."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - IDEMPOTENCY_KEYS_LAST))
