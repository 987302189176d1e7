"""/v1/webhooks: what users make, change and see. What is sent, and when: tests/worker/test_deliveries.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2 as httpx
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, text, update

from service.core.database import transaction
from service.webhooks import sealing
from service.webhooks import store as webhooks
from service.webhooks import trigger as webhook_trigger
from service.webhooks.tables import Webhook, WebhookDelivery
from tests.support.api import Api, Tenant, check_problem, client, new_tenant, serving, submit
from tests.support.jobs import claim, succeed
from tests.support.waiting import CEILING_SECONDS, wait_until

KEY = Fernet.generate_key().decode()
WAITED_FOR = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid)"
"""Whether another transaction waits for the end of this one."""


@pytest.fixture(scope="module")
def lenient(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose operator allows http, and this machine's addresses; and encrypts secrets."""
    allowed = {"AMAML_WEBHOOK_ALLOW_HTTP": "true", "AMAML_WEBHOOK_NETWORKS": "127.0.0.0/8", "AMAML_WEBHOOK_KEYS": KEY}
    with serving(service_database, tmp_path_factory.mktemp("lenient") / "log", **allowed) as running:
        yield running


@pytest.fixture
def http(lenient: Api, tenant: Tenant) -> Iterator[httpx.Client]:
    with client(lenient, tenant) as ready:
        yield ready


def make(http: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/webhooks", json={"url": "http://127.0.0.1:9009/hook", **changes})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def owed(webhook_id: str) -> list[WebhookDelivery]:
    with transaction() as session:
        query = (
            select(WebhookDelivery).where(WebhookDelivery.webhook_id == UUID(webhook_id)).order_by(WebhookDelivery.id)
        )
        return list(session.scalars(query))


class TestWebhooks:
    def test_the_secret_is_shown_once(self, http: httpx.Client) -> None:
        answer = http.post("/v1/webhooks", json={"url": "http://127.0.0.1:9009/hook"})
        made = answer.json()
        assert answer.headers["location"] == made["links"]["self"]
        assert answer.headers["cache-control"] == "no-store"
        assert made["secret"].startswith("whsec_")
        assert made["events"] == ["job.succeeded", "job.failed", "job.cancelled"]
        shown = http.get(made["links"]["self"]).json()
        assert shown == {name: value for name, value in made.items() if name != "secret"}
        assert http.get("/v1/webhooks").json()["data"] == [shown]

    def test_the_private_key_is_never_shown(self, http: httpx.Client) -> None:
        made = make(http, signature="ed25519")
        assert (made["secret"], made["public_key"][:5]) == (None, "whpk_")
        rotated = http.post(f"{made['links']['self']}/rotate").json()
        assert rotated["secret"] is None
        assert rotated["public_key"] not in (made["public_key"], None)

    def test_secrets_lie_encrypted_if_there_is_a_key(self, http: httpx.Client) -> None:
        made = make(http)
        with transaction() as session:
            stored = session.get_one(Webhook, UUID(made["id"])).secret
        assert made["secret"] not in stored
        assert sealing.unseal(stored, [KEY]) == made["secret"]

    def test_changes(self, http: httpx.Client) -> None:
        own = make(http)["links"]["self"]
        changed = http.patch(own, json={"events": ["job.running", "job.running"], "description": "x"}).json()
        assert (changed["events"], changed["description"]) == (["job.running"], "x")
        assert changed["url"] == "http://127.0.0.1:9009/hook"
        off = http.patch(own, json={"enabled": False, "url": None}).json()
        assert (off["enabled"], off["disabled_reason"]) == (False, "asked")
        with transaction() as session:
            session.execute(
                update(Webhook).where(Webhook.id == UUID(off["id"])).values(failures=7, disabled_reason="gone")
            )
        assert http.patch(own, json={"enabled": False}).json()["disabled_reason"] == "gone"
        on = http.patch(own, json={"enabled": True}).json()
        assert (on["enabled"], on["disabled_reason"], on["failures"]) == (True, None, 0)
        assert http.delete(own).status_code == 204
        check_problem(http.delete(own), 404, "not_found")
        check_problem(http.patch(own, json={"enabled": True}), 404, "not_found")

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/url"),
            ({"url": "http://127.0.0.1", "events": []}, "/events"),
            ({"url": "http://127.0.0.1", "events": ["job.flown"]}, "/events/0"),
            ({"url": "http://127.0.0.1", "events": ["webhook.test"]}, "/events/0"),
            ({"url": "http://127.0.0.1", "signature": "md5"}, "/signature"),
            ({"url": "http://127.0.0.1", "secret": "whsec_x"}, "/secret"),
            ({"url": 1}, "/url"),
            ({"url": "http://127.1/"}, "/url"),
            ({"url": "http://10.0.0.1/"}, "/url"),
            ({"url": "https://nowhere.invalid/"}, "/url"),
            ({"url": "https://user:secret@127.0.0.1/"}, "/url"),
        ],
    )
    def test_what_is_wrong_is_said(self, http: httpx.Client, body: dict[str, Any], pointer: str) -> None:
        problem = check_problem(http.post("/v1/webhooks", json=body), 422, "invalid")
        assert pointer in [error["pointer"] for error in problem["errors"]]
        if "events" not in body and "signature" not in body and body:
            own = make(http)["links"]["self"]
            assert check_problem(http.patch(own, json=body), 422, "invalid")["errors"][0]["pointer"] == pointer
            assert http.get(own).json()["url"] == "http://127.0.0.1:9009/hook"

    def test_by_default_only_https_and_public_addresses_will_do(self, api: Api, tenant: Tenant) -> None:
        with client(api, tenant) as strict:
            for url in ("http://1.1.1.1/", "https://127.0.0.1/", "https://localhost:8443/", "https://[::1]/",
                        "https://169.254.169.254/latest/meta-data/", "https://[::ffff:127.0.0.1]/"):  # fmt: skip
                problem = check_problem(strict.post("/v1/webhooks", json={"url": url}), 422, "invalid")
                assert problem["errors"][0]["pointer"] == "/url"
            assert strict.post("/v1/webhooks", json={"url": "https://1.1.1.1/hook"}).status_code == 201

    def test_a_workspace_has_no_more_than_it_may(self, http: httpx.Client) -> None:
        body = {"url": "http://127.0.0.1/"}
        for _ in range(webhooks.MAX_WEBHOOKS - 2):
            make(http)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/webhooks", json=body).status_code, range(4)))
        assert sorted(answers) == [201, 201, 409, 409]
        check_problem(http.post("/v1/webhooks", json=body), 409, "too_many")

    def test_pages(self, http: httpx.Client) -> None:
        made = [make(http)["id"] for _ in range(3)]
        first = http.get("/v1/webhooks?limit=2").json()
        rest = http.get("/v1/webhooks", params={"limit": 2, "cursor": first["next_cursor"]}).json()
        assert [one["id"] for one in first["data"] + rest["data"]] == made[::-1]


class TestEvents:
    def test_the_database_holds_what_the_text_says(self, store: str) -> None:
        with transaction() as session:
            installed = session.scalar(text("SELECT prosrc FROM pg_proc WHERE proname = 'tell_webhooks'"))
        assert installed == webhook_trigger.FUNCTION_BODY, "write a revision with the new function"

    def test_an_event_is_owed_to_those_that_want_it(self, http: httpx.Client) -> None:
        every = make(http, events=list(webhook_trigger.TYPES))["id"]
        ends = make(http)["id"]
        off = make(http)
        http.patch(off["links"]["self"], json={"enabled": False})
        job = submit(http)
        claim(job)
        succeed(job, b"theta")
        assert [one.type for one in owed(every)] == ["job.queued", "job.running", "job.succeeded"]
        assert [one.type for one in owed(ends)] == ["job.succeeded"]
        assert owed(off["id"]) == []

    def test_a_message_says_of_the_job_what_the_api_says(self, http: httpx.Client) -> None:
        webhook = make(http, events=["job.succeeded", "job.paused", "job.queued"])
        job = submit(http, name="Größe 5", tags={"a": '"b"'})
        claim(job)
        succeed(job, b"theta")
        shown = http.get(f"/v1/jobs/{job}").json()
        queued, succeeded = [json.loads(one.body) for one in owed(webhook["id"])]
        assert (queued["type"], queued["data"]["state"], queued["data"]["started_at"]) == ("job.queued", "queued", None)
        assert succeeded["data"].pop("links") == {"self": shown["links"]["self"]}
        assert succeeded["data"] == {name: value for name, value in shown.items() if name not in ("spec", "links")}
        assert succeeded["timestamp"] == shown["ended_at"]

    def test_other_workspaces_get_nothing(self, http: httpx.Client, api: Api) -> None:
        webhook = make(http, events=["job.queued"])
        with client(api, new_tenant()) as other:
            submit(other)
        assert owed(webhook["id"]) == []

    def test_a_job_goes_on_while_its_webhook_is_being_deleted(self, http: httpx.Client) -> None:
        webhook = make(http, events=["job.queued"])
        with ThreadPoolExecutor(1) as pool:
            with transaction() as session:
                assert session.query(Webhook).filter(Webhook.id == UUID(webhook["id"])).delete() == 1
                submitted = pool.submit(submit, http)
                wait_until(lambda: session.scalar(text(WAITED_FOR)))
                assert not submitted.done()
            job = submitted.result(CEILING_SECONDS)
        assert http.get(f"/v1/jobs/{job}").json()["state"] == "queued"


class TestDeliveries:
    def test_a_test_message_is_owed_whatever_the_webhook_wants(self, http: httpx.Client) -> None:
        own = make(http)["links"]["self"]
        answer = http.post(f"{own}/test")
        delivery = answer.json()
        assert (answer.status_code, delivery["type"], delivery["state"]) == (202, "webhook.test", "pending")
        assert json.loads(delivery["body"])["type"] == "webhook.test"
        assert http.get(answer.headers["location"]).json() == delivery
        (listed,) = http.get(f"{own}/deliveries").json()["data"]
        assert listed == {name: value for name, value in delivery.items() if name != "body"}
        assert http.get(f"{own}/deliveries?state=failed").json()["data"] == []
        check_problem(http.get(f"{own}/deliveries?state=lost"), 422, "invalid")
        check_problem(http.get(f"{own}/deliveries/{own[-36:]}"), 404, "not_found")

    def test_only_ended_deliveries_of_enabled_webhooks_are_sent_again(self, http: httpx.Client) -> None:
        own = make(http)["links"]["self"]
        delivery = http.post(f"{own}/test").json()["links"]["self"]
        check_problem(http.post(f"{delivery}/redeliver"), 409, "wrong_state")
        http.patch(own, json={"enabled": False})
        assert http.get(delivery).json()["state"] == "failed"
        for path in (f"{own}/test", f"{delivery}/redeliver"):
            assert "enable it" in check_problem(http.post(path), 409, "wrong_state")["detail"]
        http.patch(own, json={"enabled": True})
        again = http.post(f"{delivery}/redeliver")
        assert (again.status_code, again.json()["state"], again.json()["ended_at"]) == (202, "pending", None)
        check_problem(http.post(f"{own}/deliveries/{own[-36:]}/redeliver"), 404, "not_found")

    def test_deliveries_go_with_their_webhook(self, http: httpx.Client) -> None:
        made = make(http)
        http.post(f"{made['links']['self']}/test")
        assert http.delete(made["links"]["self"]).status_code == 204
        assert owed(made["id"]) == []

    def test_rotation_keeps_the_old_secret_for_the_overlap(self, http: httpx.Client) -> None:
        made = make(http)
        own = made["links"]["self"]
        rotated = http.post(f"{own}/rotate", params={"overlap_seconds": 60}).json()
        assert rotated["secret"] not in (made["secret"], None)
        assert rotated["previous_secret_until"] is not None
        assert http.post(f"{own}/rotate", params={"overlap_seconds": 0}).json()["previous_secret_until"] is None
        check_problem(http.post(f"{own}/rotate", params={"overlap_seconds": 30 * 24 * 3600 + 1}), 422, "invalid")


def test_no_secret_is_ever_logged(http: httpx.Client, lenient: Api) -> None:
    made = make(http)
    assert made["secret"] not in Path(lenient.log).read_text()
