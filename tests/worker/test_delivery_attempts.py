"""One message at a time: how it is signed, what its receiver's answer makes of it, when it is sent again."""

from __future__ import annotations

import base64
import time
from datetime import timedelta
from email.utils import formatdate

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import func, update
from standardwebhooks import Webhook as Verifier

from service.core.database import transaction
from service.webhooks import deliveries, sealing, signing
from service.webhooks import store as webhooks
from service.webhooks.tables import Webhook, WebhookDelivery
from tests.support.receiver import Receiver, Reply
from tests.support.webhooks import ask, attempts, delivery, due, make, sender, webhook


@pytest.mark.usefixtures("store")
class TestSending:
    def test_a_message_is_signed_sent_and_noted(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(201, body=b"thanks\x00\xff" + b"x" * 5000)
        webhook_id, secret = make(receiver.url)
        delivery_id = ask(webhook_id)
        sender().send()
        (got,) = receiver.got
        assert Verifier(secret.secret).verify(got.body, got.headers) == {"type": "webhook.test"}
        assert got.headers["webhook-id"] == str(delivery_id)
        assert got.headers["content-type"] == "application/json"
        sent = delivery(delivery_id)
        assert (sent.state, sent.lease_expires_at) == ("succeeded", None)
        (noted,) = attempts(delivery_id)
        assert (noted.status, noted.error, noted.number) == (201, None, 1)
        assert (noted.response or "")[:8] == "thanks\ufffd\ufffd"
        assert len(noted.response or "") == deliveries.MAX_EXCERPT
        assert noted.seconds is not None
        assert noted.seconds > 0

    def test_both_keys_of_a_rotation_sign_until_the_overlap_ends(self, receiver: Receiver) -> None:
        webhook_id, old = make(receiver.url)
        new = signing.new_secret("hmac")
        with transaction() as session:
            webhooks.rotate(
                session, session.get_one(Webhook, webhook_id), sealing.seal(new.secret, []), None, timedelta(hours=1)
            )
        ask(webhook_id)
        sender().send()
        for secret in (new, old):
            Verifier(secret.secret).verify(receiver.got[0].body, receiver.got[0].headers)
        with transaction() as session:
            session.execute(update(Webhook).values(previous_until=func.now()))
        ask(webhook_id)
        sender().send()
        Verifier(new.secret).verify(receiver.got[1].body, receiver.got[1].headers)
        assert receiver.got[1].headers["webhook-signature"].count("v1,") == 1

    def test_ed25519(self, receiver: Receiver) -> None:
        webhook_id, secret = make(receiver.url, "ed25519")
        ask(webhook_id)
        sender().send()
        (got,) = receiver.got
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode((secret.public_key or "").removeprefix("whpk_")))
        signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
        public.verify(base64.b64decode(got.headers["webhook-signature"].removeprefix("v1a,")), signed)

    def test_retries_are_the_same_message_until_one_succeeds(self, receiver: Receiver) -> None:
        replies = iter([Reply(500, body=b"no"), Reply(302), Reply(200)])
        receiver.answer = lambda _: next(replies)
        webhook_id, _ = make(receiver.url)
        delivery_id = ask(webhook_id)
        sender().send()
        assert [one.status for one in attempts(delivery_id)] == [500, 302, 200]
        assert len({(got.headers["webhook-id"], got.body) for got in receiver.got}) == 1
        assert delivery(delivery_id).state == "succeeded"
        assert (webhook(webhook_id).failures, webhook(webhook_id).failing_since) == (0, None)

    def test_attempts_are_used_up(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(500)
        webhook_id, _ = make(receiver.url)
        delivery_id = ask(webhook_id)
        sender().send()
        assert (delivery(delivery_id).state, len(attempts(delivery_id))) == ("failed", 3)
        assert webhook(webhook_id).enabled
        assert webhook(webhook_id).failures == 3
        with transaction() as session:
            found = session.get_one(WebhookDelivery, delivery_id)
            webhooks.redeliver(session, session.get_one(Webhook, webhook_id), found)
        receiver.answer = lambda _: Reply(200)
        sender().send()
        assert (delivery(delivery_id).state, [one.number for one in attempts(delivery_id)]) == (
            "succeeded",
            [1, 2, 3, 4],
        )
        assert len({got.headers["webhook-id"] for got in receiver.got}) == 1

    def test_the_schedule_is_kept_give_or_take_a_tenth(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(500)
        webhook_id, _ = make(receiver.url)
        delivery_id = ask(webhook_id)
        patient = sender(retry_seconds=[0, 100, 10_000])
        patient.send()
        assert 30 < due(delivery_id) < 110
        patient.send()
        assert len(receiver.got) == 1
        with transaction() as session:
            session.execute(update(WebhookDelivery).values(next_attempt_at=func.now()))
        patient.send()
        assert 8_990 < due(delivery_id) < 11_000

    @pytest.mark.parametrize(
        ("value", "least", "most"),
        [("600", 540, 600), ("1", 30, 110), ("999999999", 86_340, 86_400), ("soon", 30, 110), ("date", 200, 300)],
    )
    def test_retry_after_is_honoured_within_reason(
        self, receiver: Receiver, value: str, least: float, most: float
    ) -> None:
        wanted = formatdate(time.time() + 300, usegmt=True) if value == "date" else value
        receiver.answer = lambda _: Reply(429, {"Retry-After": wanted})
        delivery_id = ask(make(receiver.url)[0])
        sender(retry_seconds=[0, 100]).send()
        assert least <= due(delivery_id) <= most

    def test_gone_disables_and_ends_what_waits(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(410)
        webhook_id, _ = make(receiver.url)
        owed = [ask(webhook_id) for _ in range(3)]
        sender().send()
        assert len(receiver.got) == 1
        assert [delivery(one).state for one in owed] == ["failed"] * 3
        assert (webhook(webhook_id).enabled, webhook(webhook_id).disabled_reason) == (False, "gone")

    def test_days_of_failures_disable(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(500)
        webhook_id, _ = make(receiver.url)
        persistent = sender(retry_seconds=[0] * (deliveries.MIN_FAILURES // 2))
        ask(webhook_id)
        ask(webhook_id)
        with transaction() as session:
            long_ago = func.now() - timedelta(days=5, minutes=1)
            session.execute(update(Webhook).values(failing_since=long_ago))
        for number in range(deliveries.MIN_FAILURES):
            assert webhook(webhook_id).enabled, f"disabled after {number} failures"
            persistent.send_next()
        assert webhook(webhook_id).disabled_reason == "failing"

    def test_many_failures_in_a_short_time_disable_nothing(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(500)
        webhook_id, _ = make(receiver.url)
        ask(webhook_id)
        sender(retry_seconds=[0] * 30).send()
        assert (webhook(webhook_id).failures, webhook(webhook_id).enabled) == (30, True)

    def test_an_address_that_isnt_allowed_any_more_is_not_reached(self, receiver: Receiver) -> None:
        delivery_id = ask(make(receiver.url)[0])
        sender(networks=[]).send()
        assert receiver.got == []
        assert delivery(delivery_id).state == "failed"
        assert "no public address" in (attempts(delivery_id)[0].error or "")

    def test_a_secret_that_cant_be_read_fails_with_the_remedy(self, receiver: Receiver) -> None:
        delivery_id = ask(make(receiver.url, secret="fernet:x")[0])
        sender().send()
        assert receiver.got == []
        assert "AMAML_WEBHOOK_KEYS" in (attempts(delivery_id)[0].error or "")

    def test_what_was_written_while_the_webhook_was_disabled_is_not_sent(self, receiver: Receiver) -> None:
        webhook_id, _ = make(receiver.url)
        delivery_id = ask(webhook_id)
        with transaction() as session:  # as a transaction that disables does to one that it doesn't see yet
            session.execute(update(Webhook).values(enabled=False))
        sender().send()
        assert (receiver.got, delivery(delivery_id).state) == ([], "failed")
