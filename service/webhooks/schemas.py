"""What the API says about webhooks and deliveries, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.webhooks.signing import Signature
from service.webhooks.store import DisabledReason
from service.webhooks.tables import Webhook, WebhookAttempt, WebhookDelivery
from service.webhooks.target import MAX_URL
from service.webhooks.trigger import TYPES

ENDS: Final = ["job.succeeded", "job.failed", "job.cancelled"]
SHOWN_ATTEMPTS: Final = 20

Type = Literal[TYPES]  # type: ignore[valid-type]  # the one list of states, as a schema's enum


def _once_each(types: list[Type]) -> list[Type]:
    return list(dict.fromkeys(types))


Types = Annotated[list[Type], Field(min_length=1, max_length=len(TYPES)), AfterValidator(_once_each)]


class NewWebhook(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    url: str = Field(min_length=1, max_length=MAX_URL)
    """Where messages are sent: https, and a host of which every address is public."""
    events: Types = ENDS
    """Types of the messages that it gets."""
    signature: Signature = "hmac"
    """`hmac`: by a secret that both sides have. `ed25519`: by a private key of the service; the receiver has the public one."""
    description: str = Field(default="", max_length=200)


class WebhookChange(BaseModel):
    """What is left out, or null, stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    url: str | None = Field(default=None, min_length=1, max_length=MAX_URL)
    events: Types | None = None
    description: str | None = Field(default=None, max_length=200)
    enabled: bool | None = None
    """false: nothing is sent, what waits for it included; what happens meanwhile isn't sent later. true: from now on."""


class WebhookDocument(BaseModel):
    model_config = ConfigDict(title="Webhook", use_attribute_docstrings=True)

    id: UUID
    url: str
    description: str
    events: list[str]
    signature: Signature
    public_key: str | None
    """`whpk_…`: what signatures of kind ed25519 are verified with."""
    previous_secret_until: datetime | None
    """Until then the secret before the last rotation signs, too."""
    enabled: bool
    disabled_reason: DisabledReason | None
    """`asked`: by PATCH. `gone`: the receiver answered 410. `failing`: nothing could be delivered for days."""
    failures: int
    """Attempts that failed since the last good one."""
    failing_since: datetime | None
    created_at: datetime
    links: dict[str, str]


class WebhookWithSecret(WebhookDocument):
    model_config = ConfigDict(title="WebhookWithSecret")

    secret: str | None
    """`whsec_…`: nobody can read it again. Null where the signature is ed25519: its private key stays here."""


class DeliveryAttempt(BaseModel):
    model_config = ConfigDict(title="DeliveryAttempt", use_attribute_docstrings=True, from_attributes=True)

    number: int
    started_at: datetime
    seconds: float | None
    """How long it took; null while it is under way, and where its worker was lost."""
    status: int | None
    """Of the receiver's answer; null where there was none."""
    error: str | None
    response: str | None
    """The first 1024 characters of the answer."""


class DeliveryDocument(BaseModel):
    model_config = ConfigDict(title="Delivery", use_attribute_docstrings=True)

    id: UUID
    """The message's `webhook-id`: the same, however often it is sent."""
    type: str
    state: Literal["pending", "succeeded", "failed"]
    attempts: list[DeliveryAttempt]
    """The latest 20, in order."""
    next_attempt_at: datetime | None
    """Null once it has ended."""
    created_at: datetime
    ended_at: datetime | None
    links: dict[str, str]


class DeliveryWithBody(DeliveryDocument):
    model_config = ConfigDict(title="DeliveryWithBody", use_attribute_docstrings=True)

    body: str
    """What is sent, to the byte."""


class EventData(BaseModel):
    """The job as it was when it became so: members of Job, without the spec."""

    model_config = ConfigDict(title="JobEventData", use_attribute_docstrings=True, extra="allow")

    id: UUID
    name: str
    state: str
    links: dict[str, str]


class JobEvent(BaseModel):
    """The body of a message to a webhook."""

    model_config = ConfigDict(title="JobEvent", use_attribute_docstrings=True)

    type: Type
    timestamp: datetime
    """When it happened."""
    data: EventData


def webhook_document(webhook: Webhook) -> WebhookDocument:
    return WebhookDocument.model_validate(_members(webhook))


def with_secret(webhook: Webhook, secret: str) -> WebhookWithSecret:
    """The document that shows the secret; it is the only one."""
    shown = secret if webhook.signature == "hmac" else None
    return WebhookWithSecret.model_validate({**_members(webhook), "secret": shown})


def delivery_document(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> DeliveryDocument:
    return DeliveryDocument.model_validate(_delivery_members(delivery, attempts))


def with_body(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> DeliveryWithBody:
    return DeliveryWithBody.model_validate({**_delivery_members(delivery, attempts), "body": delivery.body})


def _members(webhook: Webhook) -> dict[str, Any]:
    own = f"/v1/webhooks/{webhook.id}"
    taken = ("id", "url", "description", "events", "signature", "public_key", "enabled", "disabled_reason", "failures")
    return {
        **{name: getattr(webhook, name) for name in taken},
        "previous_secret_until": webhook.previous_until,
        "failing_since": webhook.failing_since,
        "created_at": webhook.created_at,
        "links": {"self": own, "deliveries": f"{own}/deliveries"},
    }


def _delivery_members(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "type": delivery.type,
        "state": delivery.state,
        "attempts": [DeliveryAttempt.model_validate(one) for one in attempts],
        "next_attempt_at": delivery.next_attempt_at if delivery.state == "pending" else None,
        "created_at": delivery.created_at,
        "ended_at": delivery.ended_at,
        "links": {"self": f"/v1/webhooks/{delivery.webhook_id}/deliveries/{delivery.id}"},
    }
