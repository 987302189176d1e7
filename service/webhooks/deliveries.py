"""Deliveries to webhooks, as workers see them: taken from their leased queue, sent, and written down.

A delivery whose worker was lost is sent again by another: it is sent at least once, and by one at a time. The database holds no
lock while it is sent.
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
"""Deliveries of a workspace that are under way at once: slow receivers of one leave senders to the others."""
MIN_FAILURES: Final = 20
"""Fewer failed attempts disable no webhook, however long ago the first was."""
MAX_EXCERPT: Final = 1024
"""Characters that are kept of an answer."""
LONGEST_PAUSE: Final = timedelta(hours=24)
"""A receiver that asks for a longer one doesn't get it."""


QUEUE: Final = LeasedQueue(WebhookDelivery, DELIVERY)


@dataclass(frozen=True)
class Sending(Held):
    """The right to send a delivery once, and what there is to send."""

    webhook_id: UUID
    url: str
    secrets: tuple[str, ...]
    """As they are stored: the present one, and the one before while it still counts."""
    type: str
    body: str


@dataclass(frozen=True)
class Result:
    """What came of an attempt."""

    status: int | None
    error: str | None
    response: str
    seconds: float
    is_good: bool
    retry_after: float | None
    """Seconds that the receiver asked to wait."""


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
    session: Session, sending: Sending, result: Result, schedule: Sequence[float], failing: timedelta
) -> webhooks.DisabledReason | None:
    """Writes down what came of it, and plans the next attempt if need be; why the webhook is disabled by it, if it is.

    Writes nothing where the delivery is another's by now, or gone with its webhook.
    """
    # The webhook's row first: who disables it holds it while ending its deliveries.
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
    """The latest attempt's worker was lost: whether its message arrived, nobody knows."""
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == delivery.id, WebhookAttempt.number == delivery.attempt)
        .values(error="The worker that sent it was lost before it had an answer.")
    )
    QUEUE.give_back(delivery)


def prune(session: Session, older_than: timedelta) -> None:
    """Forgets deliveries that ended longer ago than that."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < func.now() - older_than))


def pause(seconds: float, retry_after: float | None) -> timedelta:
    """How long to wait before the next attempt: as the schedule has it, give or take a tenth, or longer if asked to."""
    # Deliveries that failed together shouldn't all come back together.
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


def _note(session: Session, sending: Sending, result: Result) -> None:
    # Postgres holds no NUL, and half a surrogate pair can't come out of the decoding.
    excerpt = result.response.replace("\x00", "\ufffd")[:MAX_EXCERPT]
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == sending.id, WebhookAttempt.number == sending.attempt)
        .values(seconds=result.seconds, status=result.status, error=result.error, response=excerpt)
    )


def _try_later(delivery: WebhookDelivery, result: Result, schedule: Sequence[float]) -> None:
    if delivery.tries >= len(schedule):
        _end(delivery, "failed")
        return
    QUEUE.give_back(delivery)
    delivery.next_attempt_at = func.now() + pause(schedule[delivery.tries], result.retry_after)


def _end(delivery: WebhookDelivery, state: str) -> None:
    QUEUE.become(delivery, state)
    delivery.ended_at = func.now()


def _reason_to_disable(
    session: Session, webhook: Webhook, result: Result, failing: timedelta
) -> webhooks.DisabledReason | None:
    if not webhook.enabled:
        return None
    if result.status == 410:
        return "gone"
    too_long = select(Webhook.id).where(Webhook.id == webhook.id, Webhook.failing_since < func.now() - failing)
    if webhook.failures >= MIN_FAILURES and session.scalar(too_long) is not None:
        return "failing"
    return None
