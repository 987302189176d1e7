"""Queries on deliveries for workers, which take them from a leased queue, send them, and note the outcome.

A delivery whose worker was lost is sent again by another, so it is sent at least once, and by one worker at a time. No lock is
held in the database while it is sent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from service.core.leased_queue import Held, LeasedQueue
from service.webhooks import store as webhooks
from service.webhooks.tables import Webhook, WebhookAttempt, WebhookDelivery
from service.webhooks.transitions import DELIVERY

AT_ONCE: Final = 4
"""The most deliveries of a workspace at once, so that its slow receivers don't keep all senders busy."""
MIN_FAILURES: Final = 20
"""A webhook isn't disabled after fewer failed attempts, however long ago the first of them was."""
MAX_EXCERPT: Final = 1024
"""The most characters of an answer that are stored."""
LONGEST_PAUSE: Final = timedelta(hours=24)
"""The longest pause that a receiver can request."""


QUEUE: Final = LeasedQueue(WebhookDelivery, DELIVERY)


@dataclass(frozen=True)
class Sending(Held):
    """The right to send a delivery once, and what there is to send."""

    webhook_id: UUID
    url: str
    secrets: tuple[str, ...]
    """As stored: the present one, and the previous one while it still signs."""
    type: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt."""

    status: int | None
    error: str | None
    response: str
    seconds: float
    is_good: bool
    retry_after: float | None
    """Seconds to wait, by the receiver's Retry-After."""


def some_due(session: Session) -> bool:
    """Whether there may be something to send."""
    due = select(WebhookDelivery.id).where(_is_due()).limit(1)
    return session.scalar(due) is not None


def take_next(session: Session, lease: timedelta, schedule: Sequence[float]) -> Sending | None:
    """The delivery that has been due longest; None if none is. One whose attempts are used up is ended here."""
    while (taken := _lock_next(session)) is not None:
        delivery, webhook = taken
        if not webhook.enabled or delivery.tries >= len(schedule):
            _end(delivery, "failed")
            session.flush()
            continue
        QUEUE.take(delivery, lease)
        delivery.tries += 1
        session.add(WebhookAttempt(delivery_id=delivery.id, number=delivery.attempt))
        return Sending(
            delivery.id,
            delivery.attempt,
            webhook.id,
            webhook.url,
            _secrets(session, webhook),
            delivery.type,
            delivery.body,
        )
    return None


def finish(
    session: Session, sending: Sending, result: Outcome, schedule: Sequence[float], failing: timedelta
) -> webhooks.DisabledReason | None:
    """Notes the outcome and schedules the next attempt if one is needed. Returns why the webhook is now disabled, if it is.

    Writes nothing if another worker has taken the delivery, or it was deleted with its webhook.
    """
    # The webhook's row is locked first, as when a webhook is disabled, which then ends its deliveries.
    webhook = session.scalars(
        select(Webhook).where(Webhook.id == sending.webhook_id).with_for_update(key_share=True)
    ).one_or_none()
    delivery = QUEUE.hold(session, sending)
    if webhook is None or delivery is None:
        return None
    _note(session, sending, result)
    if result.is_good:
        _end(delivery, "succeeded")
        webhook.failures, webhook.failing_since = 0, None
        return None
    webhook.failures += 1
    if webhook.failing_since is None:
        webhook.failing_since = func.now()
    if result.status == 410:
        _end(delivery, "failed")
    else:
        _try_later(delivery, result, schedule)
    session.flush()
    reason = _reason_to_disable(session, webhook, result, failing)
    if reason is not None:
        webhooks.disable(session, webhook, reason)
    return reason


def lapsed(session: Session, delivery: WebhookDelivery) -> None:
    """The worker of the latest attempt was lost; whether the message arrived is unknown."""
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == delivery.id, WebhookAttempt.number == delivery.attempt)
        .values(error="The worker that sent it was lost before it had an answer.")
    )
    QUEUE.give_back(delivery)


def prune(session: Session, older_than: timedelta) -> None:
    """Deletes deliveries that ended longer ago than that."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < func.now() - older_than))


def pause(seconds: float, retry_after: float | None) -> timedelta:
    """How long to wait before the next attempt: the schedule's pause, varied by a tenth, or longer if the receiver wants it."""
    # Deliveries that failed at the same time shouldn't all be tried again at the same time.
    planned = timedelta(seconds=seconds * random.uniform(0.9, 1.1))  # noqa: S311 - nothing secret
    return max(planned, min(timedelta(seconds=retry_after or 0.0), LONGEST_PAUSE))


def _lock_next(session: Session) -> tuple[WebhookDelivery, Webhook] | None:
    busy = (
        select(WebhookDelivery.workspace_id)
        .where(WebhookDelivery.lease_expires_at > func.now())
        .group_by(WebhookDelivery.workspace_id)
        .having(func.count() >= AT_ONCE)
    )
    due = (
        select(WebhookDelivery, Webhook)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(_is_due(), WebhookDelivery.workspace_id.not_in(busy))
        .order_by(WebhookDelivery.next_attempt_at)
    )
    row = QUEUE.lock_next(session, due)
    return (row[0], row[1]) if row else None


def _is_due() -> ColumnElement[bool]:
    return and_(QUEUE.waits(), WebhookDelivery.next_attempt_at <= func.now())


def _secrets(session: Session, webhook: Webhook) -> tuple[str, ...]:
    counts = select(Webhook.previous_secret).where(Webhook.id == webhook.id, Webhook.previous_until > func.now())
    previous = session.scalar(counts)
    return (webhook.secret, previous) if previous else (webhook.secret,)


def _note(session: Session, sending: Sending, result: Outcome) -> None:
    # Postgres can't store NUL characters. Lone surrogates, which it can't store either, don't result from decoding.
    excerpt = result.response.replace("\x00", "\ufffd")[:MAX_EXCERPT]
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == sending.id, WebhookAttempt.number == sending.attempt)
        .values(seconds=result.seconds, status=result.status, error=result.error, response=excerpt)
    )


def _try_later(delivery: WebhookDelivery, result: Outcome, schedule: Sequence[float]) -> None:
    if delivery.tries >= len(schedule):
        _end(delivery, "failed")
        return
    QUEUE.give_back(delivery)
    delivery.next_attempt_at = func.now() + pause(schedule[delivery.tries], result.retry_after)


def _end(delivery: WebhookDelivery, state: str) -> None:
    QUEUE.become(delivery, state)
    delivery.ended_at = func.now()


def _reason_to_disable(
    session: Session, webhook: Webhook, result: Outcome, failing: timedelta
) -> webhooks.DisabledReason | None:
    if not webhook.enabled:
        return None
    if result.status == 410:
        return "gone"
    too_long = select(Webhook.id).where(Webhook.id == webhook.id, Webhook.failing_since < func.now() - failing)
    if webhook.failures >= MIN_FAILURES and session.scalar(too_long) is not None:
        return "failing"
    return None
