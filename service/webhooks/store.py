"""Queries on webhooks and their deliveries for users' requests. Those of workers: `deliveries`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from service.core.refusals import TooMany, WrongState
from service.core.tables import Workspace
from service.webhooks.tables import Webhook, WebhookAttempt, WebhookDelivery
from service.webhooks.transitions import DELIVERY
from service.webhooks.trigger import TEST

MAX_WEBHOOKS: Final = 50
"""The most webhooks of a workspace."""

DisabledReason = Literal["asked", "gone", "failing"]


def add(session: Session, workspace_id: UUID, **values: Any) -> Webhook:
    """Adds a webhook; raises TooMany. The workspace's row is locked, so that two at once can't exceed the limit."""
    session.execute(select(Workspace.id).where(Workspace.id == workspace_id).with_for_update(key_share=True))
    count = session.scalars(select(func.count()).where(Webhook.workspace_id == workspace_id)).one()
    if count >= MAX_WEBHOOKS:
        raise TooMany(f"The workspace has {count} webhooks, as many as it may: delete one first.")
    webhook = Webhook(workspace_id=workspace_id, **values)
    session.add(webhook)
    session.flush()
    session.refresh(webhook)
    return webhook


def find(session: Session, workspace_id: UUID, webhook_id: UUID) -> Webhook | None:
    return session.scalars(
        select(Webhook).where(Webhook.id == webhook_id, Webhook.workspace_id == workspace_id)
    ).one_or_none()


def locked(session: Session, workspace_id: UUID, webhook_id: UUID) -> Webhook | None:
    """The webhook with its row locked for a change, which doesn't keep events from being written for it."""
    wanted = select(Webhook).where(Webhook.id == webhook_id, Webhook.workspace_id == workspace_id)
    return session.scalars(wanted.with_for_update(key_share=True)).one_or_none()


def page(session: Session, workspace_id: UUID, before: UUID | None, limit: int) -> list[Webhook]:
    """The workspace's webhooks that are older than `before`, newest first."""
    query = select(Webhook).where(Webhook.workspace_id == workspace_id).order_by(Webhook.id.desc()).limit(limit)
    return list(session.scalars(query.where(Webhook.id < before) if before else query))


def remove(session: Session, workspace_id: UUID, webhook_id: UUID) -> bool:
    """Deletes the webhook with its deliveries; False if the workspace has none of that id."""
    gone = delete(Webhook).where(Webhook.id == webhook_id, Webhook.workspace_id == workspace_id).returning(Webhook.id)
    return session.scalar(gone) is not None


def enable(webhook: Webhook) -> None:
    """Enables it for events from now on, and resets its count of failures."""
    webhook.enabled = True
    webhook.disabled_reason = None
    webhook.failures = 0
    webhook.failing_since = None


def disable(session: Session, webhook: Webhook, reason: DisabledReason) -> None:
    """Disables it. Its pending deliveries fail; they may be requested again later."""
    webhook.enabled = False
    webhook.disabled_reason = reason
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook.id, WebhookDelivery.state == "pending")
        .values(state="failed", ended_at=func.now(), lease_expires_at=None)
        .execution_options(synchronize_session=False)
    )


def rotate(session: Session, webhook: Webhook, secret: str, public_key: str | None, overlap: timedelta) -> None:
    """Makes the new secret sign; for the time `overlap` the old one signs, too."""
    webhook.previous_secret = webhook.secret if overlap else None
    webhook.previous_until = func.now() + overlap if overlap else None
    webhook.secret, webhook.public_key = secret, public_key
    session.flush()
    session.refresh(webhook)


def test(session: Session, webhook: Webhook, body: str) -> WebhookDelivery:
    """Adds the delivery of a test message; raises WrongState if the webhook is disabled."""
    _check_enabled(webhook)
    added = insert(WebhookDelivery).values(
        webhook_id=webhook.id, workspace_id=webhook.workspace_id, type=TEST, body=body
    )
    return session.scalars(added.returning(WebhookDelivery)).one()


def deliveries(
    session: Session, webhook_id: UUID, state: str | None, before: UUID | None, limit: int
) -> list[WebhookDelivery]:
    """The webhook's deliveries that are older than `before`, newest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    return list(session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit)))


def delivery(session: Session, webhook_id: UUID, delivery_id: UUID, *, lock: bool = False) -> WebhookDelivery | None:
    wanted = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook_id)
    return session.scalars(wanted.with_for_update() if lock else wanted).one_or_none()


def attempts(session: Session, found: Sequence[WebhookDelivery], latest: int) -> dict[UUID, list[WebhookAttempt]]:
    """The `latest` attempts of each delivery, in order."""
    ids = [one.id for one in found]
    query = (
        select(WebhookAttempt)
        .join(WebhookDelivery, WebhookDelivery.id == WebhookAttempt.delivery_id)
        .where(WebhookAttempt.delivery_id.in_(ids), WebhookAttempt.number > WebhookDelivery.attempt - latest)
        .order_by(WebhookAttempt.number)
    )
    by_delivery: dict[UUID, list[WebhookAttempt]] = {each: [] for each in ids}
    for attempt in session.scalars(query):
        by_delivery[attempt.delivery_id].append(attempt)
    return by_delivery


def redeliver(session: Session, webhook: Webhook, wanted: WebhookDelivery) -> None:
    """Makes the delivery pending again; its schedule begins anew. The caller has locked both rows. Raises WrongState."""
    _check_enabled(webhook)
    if wanted.state == "pending":
        raise WrongState("The delivery is still tried: wait until it has succeeded or failed.")
    DELIVERY.check(wanted.state, "pending")
    wanted.state = "pending"
    wanted.tries = 0
    wanted.ended_at = None
    wanted.next_attempt_at = func.now()
    session.flush()
    session.refresh(wanted)


def _check_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise WrongState("The webhook is disabled: enable it first, with PATCH and enabled true.")
