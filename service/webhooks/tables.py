"""The tables of webhooks, of the messages to them, and of each time that one was sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.tables import Base, LeasedRow, Workspace, now, uuid7


class Webhook(Base):
    """Where a workspace's events are sent."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("signature IN ('hmac', 'ed25519')", name="signature"),
        Index("ix_webhooks_workspace_id_id", "workspace_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=uuid7)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    url: Mapped[str]
    description: Mapped[str]
    events: Mapped[list[Any]]
    """Types of the messages that it receives."""
    signature: Mapped[str]
    secret: Mapped[str]
    """As service.webhooks.sealing stores it."""
    previous_secret: Mapped[str | None]
    """Signs beside `secret` until `previous_until`."""
    previous_until: Mapped[datetime | None]
    public_key: Mapped[str | None]
    """Of `secret`, where the signature is ed25519."""
    enabled: Mapped[bool] = mapped_column(server_default="true")
    disabled_reason: Mapped[str | None]
    """Why it isn't enabled, as a word for programs."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Attempts that have failed since the last successful one."""
    failing_since: Mapped[datetime | None]
    """When the first of them was made."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class WebhookDelivery(LeasedRow):
    """One message to one webhook. Its id is the message's `webhook-id`, however often it is sent."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'succeeded', 'failed')", name="state"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_webhook_deliveries_leases", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")
        ),
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
        Index("ix_webhook_deliveries_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey(Workspace.id))
    type: Mapped[str]
    body: Mapped[str]
    """The message, exactly as every attempt signs and sends it."""
    state: Mapped[str] = mapped_column(server_default="pending")
    tries: Mapped[int] = mapped_column(server_default="0")
    """Attempts since it was requested, or requested again: its place in the schedule of retries."""
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=now)
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    ended_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One time that a delivery was sent."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(server_default=now)
    seconds: Mapped[float | None]
    """How long it took; null while it is under way, and if its worker was lost."""
    status: Mapped[int | None]
    error: Mapped[str | None]
    """A sentence, if there was no answer, or one that needs a remedy."""
    response: Mapped[str | None]
    """The beginning of the answer's body."""
