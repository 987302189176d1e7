"""Which sender takes which message, and that none is lost: by real workers and senders, to real receivers."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import delete, func, select, text, update
from standardwebhooks import Webhook as Verifier

from service.core.database import transaction
from service.core.tables import Workspace
from service.webhooks import deliveries
from service.webhooks import store as webhooks
from service.webhooks.tables import Webhook, WebhookDelivery
from tests.support.jobs import spec, submit, wait_for
from tests.support.receiver import Got, Receiver, Reply, certificate, receiving
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.webhooks import SECONDS, ask, attempts, configured, delivery, make, sender, webhook
from tests.support.workers import Workers
from worker.maintenance.reconciler import end_one_lapsed_lease
from worker.webhooks.deliveries import Senders


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
        result = deliveries.Outcome(500, None, "", 0.1, is_good=False, retry_after=None)
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
