"""What webhooks are owed is sent: by real workers and senders, to real receivers."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import delete, func, select, text, update
from standardwebhooks import Webhook as Verifier

from service.core.database import transaction
from service.core.tables import Workspace
from service.webhooks import deliveries, sealing, signing
from service.webhooks import store as webhooks
from service.webhooks.settings import Settings
from service.webhooks.tables import Webhook, WebhookAttempt, WebhookDelivery
from service.webhooks.trigger import TYPES
from tests.support.jobs import spec, submit, wait_for
from tests.support.receiver import Got, Receiver, Reply, certificate, receiving
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import Workers
from worker.maintenance.reconciler import end_one_lapsed_lease
from worker.webhooks.deliveries import Senders

SECONDS = timedelta(seconds=30)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def configured(**changes: Any) -> Settings:
    return Settings(
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


@pytest.mark.usefixtures("store")
class TestTaking:
    def test_several_senders_send_each_message_once(self, receiver: Receiver) -> None:
        webhook_id, _ = make(receiver.url)
        owed = {str(ask(webhook_id)) for _ in range(40)}
        with ThreadPoolExecutor(6) as pool:
            done = [pool.submit(sender().send) for _ in range(6)]
            for one in done:
                one.result()
        sender().send()  # some may have found their workspace's share taken
        assert sorted(got.headers["webhook-id"] for got in receiver.got) == sorted(owed)

    def test_a_workspace_with_a_slow_receiver_leaves_senders_to_others(self, receiver: Receiver) -> None:
        slow, _ = make(receiver.url)
        for _ in range(deliveries.AT_ONCE + 3):
            ask(slow)
        with transaction() as session:
            other = Workspace(name="other")
            session.add(other)
            session.flush()
            session.execute(update(Workspace).where(Workspace.id == other.id).values(name="other"))
            quick = webhooks.add(
                session,
                other.id,
                url=receiver.url,
                events=[],
                description="",
                secret="plain:whsec_eA==",
                signature="hmac",
            )
        quick_delivery = ask(quick.id)
        taken = []
        for _ in range(deliveries.AT_ONCE + 2):
            with transaction() as session:
                taken.append(deliveries.take_next(session, SECONDS, [0.0]))
        assert [one.webhook_id for one in taken if one] == [slow] * deliveries.AT_ONCE + [quick.id]
        assert taken[-2] is not None
        assert taken[-2].id == quick_delivery
        assert taken[-1] is None

    def test_a_late_result_of_a_lapsed_lease_is_dropped(self, receiver: Receiver) -> None:
        delivery_id = ask(make(receiver.url)[0])
        with transaction() as session:
            late = deliveries.take_next(session, timedelta(0), [0.0, 0.0])
        assert late is not None
        assert end_one_lapsed_lease("delivery")
        with transaction() as session:
            again = deliveries.take_next(session, SECONDS, [0.0, 0.0])
        assert again is not None
        assert (again.id, again.attempt) == (delivery_id, 2)
        result = deliveries.Result(500, None, "", 0.1, is_good=False, retry_after=None)
        with transaction() as session:
            deliveries.finish(session, late, result, [0.0, 0.0], SECONDS)
        assert (delivery(delivery_id).state, webhook(again.webhook_id).failures) == ("pending", 0)
        first, second = attempts(delivery_id)
        assert "worker that sent it was lost" in (first.error or "")
        assert (second.error, second.status) == (None, None)

    def test_a_delivery_whose_workers_are_lost_again_and_again_ends(self, receiver: Receiver) -> None:
        delivery_id = ask(make(receiver.url)[0])
        for _ in range(3):
            with transaction() as session:
                assert deliveries.take_next(session, timedelta(0), [0.0] * 3) is not None
            assert end_one_lapsed_lease("delivery")
        with transaction() as session:
            assert deliveries.take_next(session, timedelta(0), [0.0] * 3) is None
        assert delivery(delivery_id).state == "failed"

    def test_old_deliveries_are_forgotten(self, receiver: Receiver) -> None:
        webhook_id, _ = make(receiver.url)
        old, new = ask(webhook_id), ask(webhook_id)
        sender().send()
        pending = ask(webhook_id)
        with transaction() as session:
            long_ago = func.now() - timedelta(days=31)
            session.execute(text("SET LOCAL session_replication_role = replica"))  # or the guard refuses it
            session.execute(update(WebhookDelivery).where(WebhookDelivery.id == old).values(ended_at=long_ago))
            deliveries.prune(session, timedelta(days=30))
            assert set(session.scalars(select(WebhookDelivery.id))) == {new, pending}

    def test_a_slow_receiver_keeps_nobody_from_looking(self, receiver: Receiver) -> None:
        go_on = threading.Event()
        slow, _ = make(receiver.url)
        crew = Senders(configured(senders=2), stopping := Event())
        receiver.answer = lambda _: (go_on.wait(CEILING_SECONDS) and Reply()) or Reply()
        ask(slow)
        tasks = crew.periodic_tasks()
        for task in tasks:
            task.start()
        wait_until(lambda: len(receiver.got) == 1)
        ask(slow)  # while the first is being sent: its receiver answers when the second has come
        wait_until(lambda: len(receiver.got) == 2)
        go_on.set()
        stopping.set()
        for task in tasks:
            task.join(CEILING_SECONDS)
        assert not any(task.is_alive() for task in tasks)

    def test_a_webhook_deleted_amid_a_delivery_does_no_harm(self, receiver: Receiver) -> None:
        webhook_id, _ = make(receiver.url)
        ask(webhook_id)
        begun, go_on = threading.Event(), threading.Event()

        def slow(_: Got) -> Reply:
            begun.set()
            go_on.wait(CEILING_SECONDS)
            return Reply()

        receiver.answer = slow
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(sender().send)
            assert begun.wait(CEILING_SECONDS)
            with transaction() as session:
                workspace_id = session.get_one(Webhook, webhook_id).workspace_id
                assert webhooks.remove(session, workspace_id, webhook_id)
            go_on.set()
            sending.result(CEILING_SECONDS)


ALLOWED = {
    "AMAML_WEBHOOK_ALLOW_HTTP": "true",
    "AMAML_WEBHOOK_NETWORKS": "127.0.0.0/8",
    "AMAML_WEBHOOK_SECONDS": "3",
    "AMAML_WEBHOOK_RETRY_SECONDS": "0,0.5,0.5",
}


@pytest.mark.processes
class TestWorkers:
    def test_a_jobs_life_is_told(self, stubbed_workers: Workers, tmp_path: Path) -> None:
        context, trusted = certificate(tmp_path, "localhost")
        with receiving(context=context) as receiver:
            _, secret = make(f"https://localhost:{receiver.port}/hook")
            # localhost may stand for ::1 too, where nobody listens.
            networks = {"AMAML_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128", "AMAML_WEBHOOK_ALLOW_HTTP": "false"}
            stubbed_workers.start(**{**ALLOWED, **networks, "SSL_CERT_FILE": str(trusted)})
            job_id = submit(spec(20))
            wait_for(job_id, "succeeded")
            wait_until(lambda: len(receiver.got) >= 3)
        told = {
            got.headers["webhook-id"]: Verifier(secret.secret).verify(got.body, got.headers) for got in receiver.got
        }
        assert sorted(one["type"] for one in told.values()) == ["job.queued", "job.running", "job.succeeded"]
        assert {one["data"]["id"] for one in told.values()} == {str(job_id)}
        stubbed_workers.stop()

    @pytest.mark.parametrize("place", ["webhook.taken", "webhook.sent"])
    def test_a_worker_killed_amid_a_delivery_loses_nothing(
        self, stubbed_workers: Workers, receiver: Receiver, place: str
    ) -> None:
        stubbed_workers.stop()
        with transaction() as session:  # what earlier tests left would come to the place, too
            session.execute(delete(Webhook))
        delivery_id = ask(make(receiver.url, events=[])[0])
        doomed = stubbed_workers.start(**ALLOWED, AMAML_FAILPOINT=f"{place}=kill")
        assert doomed.wait() == -signal.SIGKILL
        assert delivery(delivery_id).state == "pending"
        with transaction() as session:  # its lease lapses
            past = func.now() - timedelta(seconds=1)
            session.execute(update(WebhookDelivery).values(lease_expires_at=past))
        stubbed_workers.start(**ALLOWED)
        wait_until(lambda: delivery(delivery_id).state == "succeeded")
        ids = [got.headers["webhook-id"] for got in receiver.got]
        assert ids == [str(delivery_id)] * (2 if place == "webhook.sent" else 1)
        assert len({got.body for got in receiver.got}) == 1
        assert [one.status for one in attempts(delivery_id)] == [None, 204]
        assert json.loads(receiver.got[-1].body) == {"type": "webhook.test"}
        stubbed_workers.stop()

    def test_a_worker_ends_in_good_order_while_a_receiver_is_slow(
        self, stubbed_workers: Workers, receiver: Receiver
    ) -> None:
        stubbed_workers.stop()
        go_on = threading.Event()
        receiver.answer = lambda _: (go_on.wait(CEILING_SECONDS) and Reply()) or Reply()
        worker = stubbed_workers.start_ready(**{**ALLOWED, "AMAML_WEBHOOK_SECONDS": "120"})
        delivery_id = ask(make(receiver.url, events=[])[0])
        wait_until(lambda: receiver.got != [])
        assert worker.stop() == 0
        assert delivery(delivery_id).state == "pending"
        go_on.set()
