"""/v1/webhooks: where a workspace's events are sent, and the deliveries. Workers send them; nothing here does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.orm import Session

from service.core.database import transaction
from service.core.principal import Principal
from service.http.bodies import JsonBody
from service.http.examples import example
from service.http.named import existing, found, removed
from service.http.pages import IdCursor, Limit, Page, page_of
from service.http.problems import invalid
from service.http.replies import documented, json_reply, path_id
from service.keys.authentication import Caller, needs
from service.webhooks import sealing, signing, target
from service.webhooks import store as webhooks
from service.webhooks.schemas import (
    SHOWN_ATTEMPTS,
    DeliveryDocument,
    DeliveryWithBody,
    JobEvent,
    NewWebhook,
    WebhookChange,
    WebhookDocument,
    WebhookWithSecret,
    delivery_document,
    webhook_document,
    with_body,
    with_secret,
)
from service.webhooks.settings import settings
from service.webhooks.tables import Webhook
from service.webhooks.trigger import TEST

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

LONGEST_OVERLAP: Final = 30 * 24 * 3600
_PENDING: Final = example(
    DeliveryWithBody, state="pending", attempts=[], next_attempt_at="2026-01-15T12:00:00.000000Z", ended_at=None
)
_BODY_CODES: Final = ("broken_json", "slow_body", "too_large", "wrong_media_type", "invalid")


def _own(caller: Caller, webhook_id: str) -> UUID:
    """The id in the path; raises the 404 problem, before any of a body is read, unless the workspace has such a webhook."""
    return found(caller, webhook_id, "webhook", webhooks.find).id


Own = Annotated[UUID, Depends(_own)]


def job_event(event: JobEvent) -> None:
    """Sent to a webhook when a job changes its state, with the headers webhook-id, webhook-timestamp and webhook-signature.

    Any 2xx within 15 s counts as delivered; anything else is tried again. See docs/webhooks.md.
    """


@router.post(
    "",
    dependencies=[needs("webhooks:write")],
    status_code=201,
    response_model=WebhookWithSecret,
    summary="Make a webhook",
    responses=documented(
        *_BODY_CODES, "too_many",
        status=201, description="The webhook; its secret for the only time.",
    ),
)  # fmt: skip
def create(caller: Caller, wanted: Annotated[NewWebhook, Depends(JsonBody(NewWebhook))]) -> Response:
    """Sends messages when jobs of the workspace change their state, signed as Standard Webhooks prescribes."""
    _check_url(wanted.url)
    secret = signing.new_secret(wanted.signature)
    with transaction() as session:
        webhook = webhooks.add(
            session, caller.workspace_id, url=wanted.url, description=wanted.description, events=list(wanted.events),
            signature=wanted.signature, secret=sealing.seal(secret.secret, settings().keys), public_key=secret.public_key,
        )  # fmt: skip
    headers = {"Location": f"/v1/webhooks/{webhook.id}", "Cache-Control": "no-store"}
    return json_reply(with_secret(webhook, secret.secret), 201, headers)


@router.get(
    "",
    dependencies=[needs("webhooks:read")],
    response_model=Page[WebhookDocument],
    summary="List webhooks",
    responses=documented("invalid", description="Newest first."),
)
def page(caller: Caller, limit: Limit = 50, cursor: IdCursor = None) -> Response:
    """The workspace's webhooks, without their secrets."""
    with transaction() as session:
        rows = webhooks.page(session, caller.workspace_id, cursor, limit + 1)
    return json_reply(page_of(rows, limit, lambda one: one.id, webhook_document))


@router.get(
    "/{webhook_id}",
    dependencies=[needs("webhooks:read")],
    response_model=WebhookDocument,
    summary="Show a webhook",
    responses=documented("not_found"),
)
def show(caller: Caller, webhook_id: str) -> Response:
    """Which events it receives, whether it is enabled, and since when deliveries to it have been failing."""
    return json_reply(webhook_document(found(caller, webhook_id, "webhook", webhooks.find)))


@router.patch(
    "/{webhook_id}",
    dependencies=[needs("webhooks:write")],
    response_model=WebhookDocument,
    summary="Change a webhook",
    responses=documented("not_found", *_BODY_CODES),
)
def change(
    caller: Caller, wanted: Own, changes: Annotated[WebhookChange, Depends(JsonBody(WebhookChange))]
) -> Response:
    """Sets what the body names: url, events, description, enabled. Enabling a webhook resets its count of failures."""
    if changes.url is not None:
        _check_url(changes.url)
    values = changes.model_dump(exclude={"enabled"}, exclude_none=True)
    with transaction() as session:
        webhook = _locked(session, caller, wanted)
        for name, value in values.items():
            setattr(webhook, name, value)
        if changes.enabled:
            webhooks.enable(webhook)
        elif changes.enabled is False and webhook.enabled:
            webhooks.disable(session, webhook, "asked")
    return json_reply(webhook_document(webhook))


@router.delete(
    "/{webhook_id}",
    dependencies=[needs("webhooks:write")],
    status_code=204,
    summary="Delete a webhook",
    responses=documented("not_found", status=204, description="It is gone, with its deliveries."),
)
def delete(caller: Caller, webhook_id: str) -> Response:
    """Nothing more is sent to it, except for a message that is being sent at this moment."""
    return removed(caller, webhook_id, "webhook", webhooks.remove)


@router.post(
    "/{webhook_id}/rotate",
    dependencies=[needs("webhooks:write")],
    response_model=WebhookWithSecret,
    summary="Change a webhook's secret",
    responses=documented("not_found", "invalid", description="The new secret, for the only time."),
)
def rotate(
    caller: Caller,
    wanted: Own,
    overlap_seconds: Annotated[
        int,
        Query(
            ge=0,
            le=LONGEST_OVERLAP,
            description="How long the old secret signs beside the new one; a day unless given.",
        ),
    ] = 24 * 3600,
) -> Response:
    """Makes a new secret, or key pair. During the overlap every message has two signatures, so that the receiver may change
    to the new secret at any time. A further rotation during the overlap ends the oldest secret at once.
    """
    with transaction() as session:
        webhook = _locked(session, caller, wanted)
        fresh = signing.new_secret("hmac" if webhook.signature == "hmac" else "ed25519")
        sealed = sealing.seal(fresh.secret, settings().keys)
        webhooks.rotate(session, webhook, sealed, fresh.public_key, timedelta(seconds=overlap_seconds))
    return json_reply(with_secret(webhook, fresh.secret), headers={"Cache-Control": "no-store"})


@router.post(
    "/{webhook_id}/test",
    dependencies=[needs("webhooks:write")],
    status_code=202,
    response_model=DeliveryWithBody,
    summary="Send a test message",
    responses=documented(
        "not_found", "wrong_state", status=202, description="It is about to be sent.", example=_PENDING
    ),
)
def test(caller: Caller, wanted: Own) -> Response:
    """Sends a message of type `webhook.test`, whichever types the webhook receives. The delivery shows how it went."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    body = json.dumps({"type": TEST, "timestamp": now, "data": {"webhook_id": str(wanted)}}, separators=(",", ":"))
    with transaction() as session:
        delivery = webhooks.test(session, _locked(session, caller, wanted), body)
    document = with_body(delivery, [])
    return json_reply(document, 202, {"Location": document.links["self"]})


@router.get(
    "/{webhook_id}/deliveries",
    dependencies=[needs("webhooks:read")],
    response_model=Page[DeliveryDocument],
    summary="List a webhook's deliveries",
    responses=documented("not_found", "invalid", description="Newest first."),
)
def deliveries(
    wanted: Own,
    state: Annotated[
        Literal["pending", "succeeded", "failed"] | None, Query(description="Only those of this state.")
    ] = None,
    limit: Limit = 50,
    cursor: IdCursor = None,
) -> Response:
    """Messages that were sent or are still tried, and the outcome of each attempt. Kept for thirty days after their end."""
    with transaction() as session:
        rows = webhooks.deliveries(session, wanted, state, cursor, limit + 1)
        attempts = webhooks.attempts(session, rows, SHOWN_ATTEMPTS)
    return json_reply(page_of(rows, limit, lambda one: one.id, lambda one: delivery_document(one, attempts[one.id])))


@router.get(
    "/{webhook_id}/deliveries/{delivery_id}",
    dependencies=[needs("webhooks:read")],
    response_model=DeliveryWithBody,
    summary="Show a delivery",
    responses=documented("not_found"),
)
def delivery(wanted: Own, delivery_id: str) -> Response:
    """Its attempts, and the message exactly as it is sent."""
    delivery_wanted = path_id(delivery_id, "delivery")
    with transaction() as session:
        shown = existing(webhooks.delivery(session, wanted, delivery_wanted), "delivery")
        attempts = webhooks.attempts(session, [shown], SHOWN_ATTEMPTS)[shown.id]
    return json_reply(with_body(shown, attempts))


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    dependencies=[needs("webhooks:write")],
    status_code=202,
    response_model=DeliveryWithBody,
    summary="Send a message again",
    responses=documented(
        "not_found", "wrong_state", status=202, description="It is about to be sent.", example=_PENDING
    ),
)
def redeliver(caller: Caller, wanted: Own, delivery_id: str) -> Response:
    """Sends an ended delivery again: the same message with the same `webhook-id`. The schedule of retries starts over."""
    delivery_wanted = path_id(delivery_id, "delivery")
    with transaction() as session:
        webhook = _locked(session, caller, wanted)
        again = existing(webhooks.delivery(session, wanted, delivery_wanted, lock=True), "delivery")
        webhooks.redeliver(session, webhook, again)
        attempts = webhooks.attempts(session, [again], SHOWN_ATTEMPTS)[again.id]
    document = with_body(again, attempts)
    return json_reply(document, 202, {"Location": document.links["self"]})


def _locked(session: Session, caller: Principal, webhook_id: UUID) -> Webhook:
    """The webhook with its row locked; raises the 404 problem if it was deleted meanwhile."""
    return existing(webhooks.locked(session, caller.workspace_id, webhook_id), "webhook")


def _check_url(url: str) -> None:
    """Raises the 422 problem for a URL to which messages would not be sent. Each delivery checks the URL again."""
    config = settings()
    try:
        parsed = target.parse(url, allow_http=config.allow_http)
        target.addresses(parsed, config.networks, target.resolver(config.connect_seconds))
    except (target.Refused, target.Unresolved) as error:
        raise invalid([{"pointer": "/url", "detail": str(error)}]) from None
