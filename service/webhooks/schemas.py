"""The API's documents of webhooks and deliveries, and the bodies that make and change webhooks."""

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


_URL: Final = "https://hooks.example.org/amaml"
_ID: Final = UUID("0199aa0c-2233-7445-8667-788990a0b1c2")
_DELIVERY_ID: Final = UUID("0199aa11-3344-7556-8778-899aa0b1c2d3")


def _links(webhook_id: UUID) -> dict[str, str]:
    own = f"/v1/webhooks/{webhook_id}"
    return {"self": own, "deliveries": f"{own}/deliveries"}


def _delivery_links(webhook_id: UUID, delivery_id: UUID) -> dict[str, str]:
    return {"self": f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}"}


def _once_each(types: list[Type]) -> list[Type]:
    return list(dict.fromkeys(types))


Types = Annotated[list[Type], Field(min_length=1, max_length=len(TYPES)), AfterValidator(_once_each)]


class NewWebhook(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    url: str = Field(min_length=1, max_length=MAX_URL, examples=[_URL])
    """Where messages are sent: an https URL whose host has only public addresses."""
    events: Types = ENDS
    """Types of the messages that it receives."""
    signature: Signature = "hmac"
    """`hmac`: by a secret that both sides have. `ed25519`: by a private key of the service; the receiver has the public one."""
    description: str = Field(default="", max_length=200, examples=["informs the team"])


class WebhookChange(BaseModel):
    """Fields that are left out or null stay as they are."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    url: str | None = Field(default=None, min_length=1, max_length=MAX_URL, examples=[_URL])
    events: Types | None = Field(default=None, examples=[["job.failed"]])
    description: str | None = Field(default=None, max_length=200)
    enabled: bool | None = Field(default=None, examples=[True])
    """false: nothing is sent any more, not even waiting messages, and events that happen meanwhile aren't sent later. true:
    events are sent from now on."""


class WebhookDocument(BaseModel):
    model_config = ConfigDict(title="Webhook", use_attribute_docstrings=True)

    id: UUID = Field(examples=[_ID])
    url: str = Field(examples=[_URL])
    description: str = Field(examples=["informs the team"])
    events: list[str] = Field(examples=[ENDS])
    signature: Signature
    public_key: str | None
    """`whpk_…`: the key with which signatures of kind ed25519 are verified."""
    previous_secret_until: datetime | None
    """Until then the secret before the latest rotation also signs."""
    enabled: bool
    disabled_reason: DisabledReason | None
    """`asked`: a PATCH disabled it. `gone`: the receiver answered 410. `failing`: nothing could be delivered for days."""
    failures: int = Field(examples=[0])
    """Attempts that have failed since the last successful one."""
    failing_since: datetime | None
    created_at: datetime
    links: dict[str, str] = Field(examples=[_links(_ID)])


class WebhookWithSecret(WebhookDocument):
    model_config = ConfigDict(title="WebhookWithSecret")

    secret: str | None = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    """`whsec_…`: it is shown only once. Null if the signature is ed25519, whose private key the service keeps."""


class DeliveryAttempt(BaseModel):
    model_config = ConfigDict(title="DeliveryAttempt", use_attribute_docstrings=True, from_attributes=True)

    number: int = Field(examples=[1])
    started_at: datetime
    seconds: float | None = Field(examples=[0.084])
    """How long it took; null while it is under way, and if its worker was lost."""
    status: int | None = Field(examples=[204])
    """The status of the receiver's answer; null if there was none."""
    error: str | None
    response: str | None = Field(examples=[""])
    """The first 1024 characters of the answer."""


class DeliveryDocument(BaseModel):
    model_config = ConfigDict(title="Delivery", use_attribute_docstrings=True)

    id: UUID = Field(examples=[_DELIVERY_ID])
    """The message's `webhook-id`, which stays the same however often it is sent."""
    type: str = Field(examples=["job.succeeded"])
    state: Literal["pending", "succeeded", "failed"] = Field(examples=["succeeded"])
    attempts: list[DeliveryAttempt]
    """The latest 20, in order."""
    next_attempt_at: datetime | None
    """When it is tried next; null once it has ended."""
    created_at: datetime
    ended_at: datetime | None = Field(examples=["2026-01-15T12:00:00.210000Z"])
    links: dict[str, str] = Field(examples=[_delivery_links(_ID, _DELIVERY_ID)])


class DeliveryWithBody(DeliveryDocument):
    model_config = ConfigDict(title="DeliveryWithBody", use_attribute_docstrings=True)

    body: str = Field(
        examples=['{"type": "job.succeeded", "timestamp": "2026-01-15T12:00:00.000000Z", "data": {"id": "…"}}']
    )
    """The message, exactly as it is sent."""


class EventData(BaseModel):
    """The job as it was when its state changed: members of Job, without the spec."""

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
    """When the job changed its state."""
    data: EventData


def webhook_document(webhook: Webhook) -> WebhookDocument:
    return WebhookDocument.model_validate(_members(webhook))


def with_secret(webhook: Webhook, secret: str) -> WebhookWithSecret:
    """The document with the secret, which no other document shows."""
    shown = secret if webhook.signature == "hmac" else None
    return WebhookWithSecret.model_validate({**_members(webhook), "secret": shown})


def delivery_document(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> DeliveryDocument:
    return DeliveryDocument.model_validate(_delivery_members(delivery, attempts))


def with_body(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> DeliveryWithBody:
    return DeliveryWithBody.model_validate({**_delivery_members(delivery, attempts), "body": delivery.body})


def _members(webhook: Webhook) -> dict[str, Any]:
    taken = ("id", "url", "description", "events", "signature", "public_key", "enabled", "disabled_reason", "failures")
    return {
        **{name: getattr(webhook, name) for name in taken},
        "previous_secret_until": webhook.previous_until,
        "failing_since": webhook.failing_since,
        "created_at": webhook.created_at,
        "links": _links(webhook.id),
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
        "links": _delivery_links(delivery.webhook_id, delivery.id),
    }
