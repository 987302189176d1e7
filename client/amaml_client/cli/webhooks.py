"""`amaml webhooks`: where events are sent, and what came of it."""

from __future__ import annotations

from typing import Annotated

import typer

from amaml_client.cli.output import AsJson, deleted, emit, listing, say, table
from amaml_client.client import Client
from amaml_client.results import Delivery, Webhook

app = typer.Typer(help="Have events sent to your own address.", no_args_is_help=True, rich_markup_mode=None)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")]
Events = Annotated[
    list[str] | None, typer.Option("--event", help="A type of message, like job.failed; may be given several times.")
]
COLUMNS = ("id", "url", "events", "signature", "enabled", "failures")
DELIVERY_COLUMNS = ("id", "type", "state", "attempts", "status", "created_at")


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where messages are sent: https://…")],
    events: Events = None,
    signature: Annotated[str | None, typer.Option(help="hmac (the default) or ed25519.")] = None,
    description: Annotated[str | None, typer.Option(help="A note of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook; its secret is shown this once."""
    with Client() as client:
        _show(client.make_webhook(url, events=events, signature=signature, description=description), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the webhooks, the latest first."""
    with Client() as client:
        found = client.webhooks()
    listing(found, COLUMNS, _row, as_json)


@app.command()
def show(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Show one webhook."""
    with Client() as client:
        _show(client.webhook(webhook_id), as_json)


@app.command()
def change(
    webhook_id: WebhookId,
    url: Annotated[str | None, typer.Option(help="Another address.")] = None,
    events: Events = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether messages are sent.")] = None,
    description: Annotated[str | None, typer.Option(help="A note of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change what is given; --enable after failures, or to go on."""
    with Client() as client:
        changed = client.change_webhook(webhook_id, url=url, events=events, enabled=enabled, description=description)
    _show(changed, as_json)


@app.command()
def rotate(
    webhook_id: WebhookId,
    overlap: Annotated[
        int | None, typer.Option(help="Seconds that the old secret signs, too; a day by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new secret, shown this once."""
    with Client() as client:
        _show(client.rotate_webhook(webhook_id, overlap_seconds=overlap), as_json)


@app.command()
def delete(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Delete a webhook and its deliveries."""
    with Client() as client:
        client.delete_webhook(webhook_id)
    deleted("webhook", webhook_id, as_json)


@app.command("test")
def send_test(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Have a test message sent; `deliveries` tells what came of it."""
    with Client() as client:
        _show_delivery(client.test_webhook(webhook_id), as_json)


@app.command()
def deliveries(
    webhook_id: WebhookId,
    state: Annotated[str | None, typer.Option(help="Only pending, succeeded or failed ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="No more than this.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what was sent, the latest first."""
    with Client() as client:
        found = client.deliveries(webhook_id, state=state, limit=limit)
    listing(found, DELIVERY_COLUMNS, _delivery_row, as_json)


@app.command()
def delivery(webhook_id: WebhookId, delivery_id: DeliveryId, as_json: AsJson = False) -> None:
    """Show one delivery: its message, and every attempt."""
    with Client() as client:
        _show_delivery(client.delivery(webhook_id, delivery_id), as_json)


@app.command()
def redeliver(webhook_id: WebhookId, delivery_id: DeliveryId, as_json: AsJson = False) -> None:
    """Have an ended delivery sent again."""
    with Client() as client:
        _show_delivery(client.redeliver(webhook_id, delivery_id), as_json)


def _show(webhook: Webhook, as_json: bool) -> None:
    if as_json:
        emit(webhook)
        return
    rows = list(zip(COLUMNS, _row(webhook), strict=True))
    for name in ("description", "disabled_reason", "failing_since", "previous_secret_until", "public_key", "secret"):
        value = getattr(webhook, name)
        if value:
            rows.append((name, str(value)))
    table(("field", "value"), rows)


def _row(webhook: Webhook) -> list[str]:
    values = {**dict(webhook), "events": ", ".join(webhook.events)}
    return [str(values[column]) for column in COLUMNS]


def _show_delivery(found: Delivery, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    rows = list(zip(DELIVERY_COLUMNS, _delivery_row(found), strict=True))
    table(
        ("field", "value"), [*rows, ("next_attempt_at", str(found.next_attempt_at or "")), ("body", found.body or "")]
    )
    if found.attempts:
        say("")
        heads = ("number", "started_at", "seconds", "status", "error", "response")
        values = [[getattr(attempt, head) for head in heads] for attempt in found.attempts]
        table(heads, [["" if value is None else str(value) for value in row] for row in values])


def _delivery_row(found: Delivery) -> list[str]:
    status = found.attempts[-1].status if found.attempts else None
    return [found.id, found.type, found.state, str(len(found.attempts)), str(status or ""), str(found.created_at or "")]
