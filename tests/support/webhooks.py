"""Webhooks that any receiver may have, messages for them, and who sends these."""

from __future__ import annotations

from datetime import timedelta
from threading import Event
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from service.core.database import transaction
from service.core.tables import Workspace
from service.webhooks import sealing, signing
from service.webhooks import store as webhooks
from service.webhooks.settings import WebhookSettings
from service.webhooks.tables import Webhook, WebhookAttempt, WebhookDelivery
from service.webhooks.trigger import TYPES
from worker.webhooks.deliveries import Senders

SECONDS = timedelta(seconds=30)


def configured(**changes: Any) -> WebhookSettings:
    return WebhookSettings(
        **{"allow_http": True, "networks": ["127.0.0.0/8"], "seconds": 120, "retry_seconds": [0, 0, 0], **changes}
    )


def sender(**changes: Any) -> Senders:
    return Senders(configured(**changes), Event())


def make(url: str, kind: signing.Signature = "hmac", **values: Any) -> tuple[UUID, signing.Secret]:
    """A webhook of the default workspace, and what signs for it."""
    secret = signing.new_secret(kind)
    with transaction() as session:
        workspace = session.scalars(select(Workspace)).first() or Workspace(name="default")
        session.add(workspace)
        session.flush()
        defaults = {"events": list(TYPES), "description": "", "secret": sealing.seal(secret.secret, [])}
        made = webhooks.add(
            session,
            workspace.id,
            **{**defaults, "url": url, "signature": kind, "public_key": secret.public_key, **values},
        )
    return made.id, secret


def ask(webhook_id: UUID, body: str = '{"type":"webhook.test"}') -> UUID:
    with transaction() as session:
        return webhooks.test(session, session.get_one(Webhook, webhook_id), body).id


def webhook(webhook_id: UUID) -> Webhook:
    with transaction() as session:
        return session.get_one(Webhook, webhook_id)


def delivery(delivery_id: UUID) -> WebhookDelivery:
    with transaction() as session:
        return session.get_one(WebhookDelivery, delivery_id)


def attempts(delivery_id: UUID) -> list[WebhookAttempt]:
    with transaction() as session:
        return webhooks.attempts(session, [session.get_one(WebhookDelivery, delivery_id)], 100)[delivery_id]


def due(delivery_id: UUID) -> float:
    """Seconds from now until its next attempt."""
    with transaction() as session:
        wait = select(func.extract("epoch", WebhookDelivery.next_attempt_at - func.now()))
        return float(session.scalars(wait.where(WebhookDelivery.id == delivery_id)).one())
