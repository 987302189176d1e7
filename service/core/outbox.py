"""Messages for the broker, written in the transaction that causes them and published after its commit.

A message is sent if and only if its cause was committed. It may be sent twice, which must do no harm to its receivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, exists, func, insert, literal, select, update
from sqlalchemy.orm import Session

from service.core.database import notify_after_commit
from service.core.notifications import WORK
from service.core.tables import OutboxMessage

Kind = Literal["wake"]


def put(session: Session, kind: Kind, payload: dict[str, Any] | None = None) -> None:
    """Adds a message in the caller's transaction. `wake` (there is work) has no payload."""
    session.execute(insert(OutboxMessage).values(kind=kind, payload=payload or {}))
    notify_after_commit(session, WORK, "outbox")


def put_unless_recent(session: Session, kind: Kind, within: timedelta) -> None:
    """Adds a message unless one of its kind was added within that time or still waits to be sent."""
    recent = exists().where(
        OutboxMessage.kind == kind,
        OutboxMessage.sent_at.is_(None) | (OutboxMessage.created_at > func.now() - within),
    )
    if session.scalar(select(literal(1)).where(~recent)):
        put(session, kind)


def take_unsent(session: Session, limit: int) -> list[OutboxMessage]:
    """The oldest unsent messages, locked until the caller's transaction ends; those that another sender has locked are left."""
    unsent = (
        select(OutboxMessage)
        .where(OutboxMessage.sent_at.is_(None))
        .order_by(OutboxMessage.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(unsent))


def mark_sent(session: Session, messages: Sequence[OutboxMessage]) -> None:
    """Notes that the broker has these messages."""
    ids = [message.id for message in messages]
    session.execute(
        update(OutboxMessage)
        .where(OutboxMessage.id.in_(ids))
        .values(sent_at=func.now())
        .execution_options(synchronize_session=False)
    )


def prune(session: Session, older_than: timedelta) -> None:
    """Removes messages sent longer ago than that."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < func.now() - older_than))
