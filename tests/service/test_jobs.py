"""Jobs over HTTP: submit, look, list, steer, delete."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from sqlalchemy import select

from amaml.spec import JobSpec
from service.core import blobs, idempotency
from service.core.database import transaction
from service.core.notifications import WORK
from service.core.tables import Blob, OutboxMessage
from service.http import waiting
from service.http.notifications import Waiters
from service.jobs import claims, progress
from service.jobs.tables import Job
from service.jobs.transitions import FINAL
from tests.support.api import SPEC, Api, Tenant, check_problem, client, new_tenant, submit
from tests.support.databases import listening
from tests.support.jobs import claim, job_of, stop, succeed
from tests.support.waiting import CEILING_SECONDS, wait_until


def test_a_submitted_job_is_queued_with_its_spec_completed(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", json={**SPEC, "name": "first", "tags": {"paper": "table-1"}})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert UUID(job["id"]).version == 7
    assert (job["name"], job["tags"], job["state"], job["attempt"]) == ("first", {"paper": "table-1"}, "queued", 0)
    assert job["progress"] == {"iteration": 0, "iterations": 3, "eta_seconds": None}
    assert job["spec"] == JobSpec.model_validate(job["spec"]).model_dump(mode="json")
    assert list(job["spec"]) == list(JobSpec.model_fields)
    assert job["spec"]["model"] == {"kind": "mlp", "hidden": [32, 32], "activation": "tanh"}
    assert http.get(job["links"]["self"]).json() == job


def test_submitting_writes_event_and_wake_up_in_one_transaction(http: httpx.Client, store: str) -> None:
    with listening(store, WORK) as hear:
        job_id = submit(http)
        assert hear() == "outbox"
    with transaction() as session:
        job = session.get_one(Job, UUID(job_id))
        same = OutboxMessage.created_at == job.created_at
        assert [message.kind for message in session.scalars(select(OutboxMessage).where(same))] == ["wake"]
    events = http.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [(event["seq"], event["kind"], event["data"]["state"]) for event in events] == [(1, "state", "queued")]


@pytest.mark.parametrize("part", ["", "/events", "/metrics", "/attempts", "/checkpoints", "/initialization"])
def test_unknown_ids_are_not_found(http: httpx.Client, part: str) -> None:
    for job_id in (str(uuid4()), "01a2054d-a188-75bf-b336-be8cb1ebcb98", "x", "..%2f..", "%00", "1" * 3000):
        check_problem(http.get(f"/v1/jobs/{job_id}{part}"), 404, "not_found")


def test_polling_costs_a_304_until_something_changes(http: httpx.Client) -> None:
    path = f"/v1/jobs/{submit(http)}"
    etag = http.get(path).headers["etag"]
    unchanged = http.get(path, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    http.post(f"{path}/cancel")
    changed = http.get(path, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


class TestLists:
    def test_pages_are_newest_first_and_complete(self, http: httpx.Client) -> None:
        submitted = [submit(http) for _ in range(5)]
        seen: list[str] = []
        cursor = None
        while True:
            page = http.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
            seen += [job["id"] for job in page["data"]]
            cursor = page["next_cursor"]
            if len(seen) == 4:
                submit(http)  # what is added meanwhile doesn't shift what is still to come
            if cursor is None:
                break
        assert seen == submitted[::-1]

    def test_filters(self, http: httpx.Client) -> None:
        plain = submit(http)
        tagged = submit(http, tags={"paper": "table-1"}, family={"kind": "alpine"})
        http.post(f"/v1/jobs/{plain}/cancel")

        def ids(**params: str | list[str]) -> set[str]:
            answer = http.get("/v1/jobs", params=params)
            assert answer.status_code == 200, answer.text
            return {job["id"] for job in answer.json()["data"]}

        assert ids(state="queued") == {tagged}
        assert ids(state=["queued", "cancelled"]) == {plain, tagged}
        assert ids(family="alpine") == {tagged}
        assert ids(method="amaml") == {plain, tagged}
        assert ids(method="nonesuch") == set()
        assert ids(tag="paper") == ids(tag="paper:table-1") == {tagged}
        assert ids(tag="paper:table-2") == set()

    @pytest.mark.parametrize(
        ("params", "name"),
        [
            ({"limit": "0"}, "limit"), ({"limit": "201"}, "limit"), ({"limit": "many"}, "limit"),
            ({"cursor": "x"}, "cursor"), ({"cursor": "é"}, "cursor"), ({"state": "lost"}, "state"),
            ({"family": "a\x00b"}, "family"), ({"tag": "\x00"}, "tag"),
        ],
    )  # fmt: skip
    def test_bad_parameters_are_named(self, http: httpx.Client, params: dict[str, str], name: str) -> None:
        errors = check_problem(http.get("/v1/jobs", params=params), 422, "invalid")["errors"]
        assert [error["parameter"] for error in errors] == [name]


class TestSteering:
    def test_cancelling_a_queued_job_is_immediate_and_twice_is_once(self, http: httpx.Client) -> None:
        path = f"/v1/jobs/{submit(http)}"
        first = http.post(f"{path}/cancel")
        assert (first.status_code, first.json()["state"]) == (202, "cancelled")
        assert first.json()["ended_at"] is not None
        assert http.post(f"{path}/cancel").json() == first.json()
        states = [event["data"]["state"] for event in http.get(f"{path}/events").json()["data"]]
        assert states == ["queued", "cancelled"]

    def test_cancelling_a_running_job_asks_its_worker(self, http: httpx.Client) -> None:
        job_id = submit(http)
        claimed = claim(job_id)
        answer = http.post(f"/v1/jobs/{job_id}/cancel")
        with transaction() as session:
            assert claims.read_state(session, claimed) == "cancelling"
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
        stop(job_id)
        assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"

    def test_pause_and_resume(self, http: httpx.Client) -> None:
        path = f"/v1/jobs/{submit(http)}"
        assert http.post(f"{path}/pause").json()["state"] == "paused"
        assert http.post(f"{path}/pause").json()["state"] == "paused"
        assert http.post(f"{path}/resume").json()["state"] == "queued"
        assert http.post(f"{path}/resume").json()["state"] == "queued"
        claim(path.rpartition("/")[2])
        assert http.post(f"{path}/pause").json()["state"] == "pausing"
        check_problem(http.post(f"{path}/resume"), 409, "wrong_state")

    def test_a_job_that_succeeded_is_extended(self, http: httpx.Client) -> None:
        job_id = submit(http, meta={"iterations": 20})
        path = f"/v1/jobs/{job_id}"
        check_problem(http.post(f"{path}/extend", json={"iterations": 30}), 409, "wrong_state")
        claim(job_id)
        succeed(job_id, b"theta", {"nrmse": [(0, 1.0), (20, 0.5)]})
        first = http.post(f"{path}/extend", json={"iterations": 30})
        assert first.status_code == 202, first.text
        job = first.json()
        assert (job["state"], job["status_reason"], job["ended_at"]) == ("queued", "extended", None)
        assert job["spec"]["meta"]["iterations"] == job["progress"]["iterations"] == 30
        assert http.post(f"{path}/extend", json={"iterations": 30}).json() == job, "twice is once"
        assert http.get(f"{path}/initialization").content == b"theta", "what it has learned stays"
        claim(job_id)
        succeed(job_id, b"more")
        assert http.get(f"{path}/initialization").content == b"more"
        problem = check_problem(http.post(f"{path}/extend", json={"iterations": 30}), 409, "wrong_state")
        assert "30 meta-iterations already" in problem["detail"]
        for fewer in (29, 0, -1, 1.5, "many", None, 10_000_000):
            problem = check_problem(http.post(f"{path}/extend", json={"iterations": fewer}), 422, "invalid")
            assert problem["errors"][0]["pointer"] == "/iterations"
        check_problem(http.post(f"{path}/extend", json={}), 422, "invalid")
        check_problem(http.post(f"/v1/jobs/{uuid4()}/extend", json={"iterations": 30}), 404, "not_found")

    @pytest.mark.parametrize(
        ("meta", "word"),
        [
            ({"optimizer": {"schedule": "cosine"}}, "cosine"),
            (
                {
                    "phases": [
                        {"method": {"kind": "reptile"}, "share": 0.5},
                        {"method": {"kind": "amaml"}, "share": 0.5},
                    ]
                },
                "shares",
            ),
        ],
        ids=["cosine", "phases"],
    )
    def test_what_depends_on_the_length_of_a_run_is_not_extended(
        self, http: httpx.Client, meta: dict[str, Any], word: str
    ) -> None:
        job_id = submit(http, meta={"iterations": 20, **meta})
        claim(job_id)
        succeed(job_id, b"theta")
        problem = check_problem(http.post(f"/v1/jobs/{job_id}/extend", json={"iterations": 40}), 422, "invalid")
        assert word in problem["errors"][0]["detail"]
        assert "init_from" in problem["errors"][0]["detail"]

    def test_what_another_job_starts_from_stays(self, http: httpx.Client) -> None:
        job_id = submit(http, meta={"iterations": 20})
        claim(job_id)
        succeed(job_id, b"theta")
        follower = submit(http, meta={"init_from": {"job": job_id}})
        problem = check_problem(http.post(f"/v1/jobs/{job_id}/extend", json={"iterations": 40}), 409, "in_use")
        assert follower in problem["detail"]
        http.post(f"/v1/jobs/{follower}/cancel")
        assert http.post(f"/v1/jobs/{job_id}/extend", json={"iterations": 40}).status_code == 202
        late = http.post("/v1/jobs", json={"family": {"kind": "sinusoid"}, "meta": {"init_from": {"job": job_id}}})
        check_problem(late, 422, "invalid")

    @pytest.mark.parametrize("step", ["cancel", "pause", "resume"])
    def test_ended_jobs_stay_as_they_are(self, http: httpx.Client, step: str) -> None:
        job_id = submit(http)
        claim(job_id)
        succeed(job_id, b"theta")
        problem = check_problem(http.post(f"/v1/jobs/{job_id}/{step}"), 409, "wrong_state")
        assert "succeeded" in problem["detail"]

    def test_many_cancels_at_once_give_one_event(self, http: httpx.Client) -> None:
        path = f"/v1/jobs/{submit(http)}"
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: http.post(f"{path}/cancel").status_code, range(8)))
        assert set(statuses) == {202}
        assert len(http.get(f"{path}/events").json()["data"]) == 2


class TestDeleting:
    def test_a_running_job_is_kept(self, http: httpx.Client) -> None:
        check_problem(http.delete(f"/v1/jobs/{submit(http)}"), 409, "wrong_state")

    def test_an_ended_job_goes_with_its_files(self, http: httpx.Client) -> None:
        job_id = submit(http)
        claim(job_id)
        succeed(job_id, b"theta")
        with transaction() as session:
            kept = session.get_one(Job, UUID(job_id)).initialization_blob_id
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
        check_problem(http.get(f"/v1/jobs/{job_id}"), 404, "not_found")
        with transaction() as session:
            assert session.get(Blob, kept) is None

    def test_a_job_that_another_starts_from_is_kept(self, http: httpx.Client) -> None:
        job_id = submit(http)
        claim(job_id)
        succeed(job_id, b"theta")
        heir = submit(http, meta={"iterations": 3, "init_from": {"job": job_id}})
        check_problem(http.delete(f"/v1/jobs/{job_id}"), 409, "in_use")
        http.post(f"/v1/jobs/{heir}/cancel")
        assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert http.get(f"/v1/jobs/{heir}").status_code == 200


class TestReferences:
    def test_a_data_set_must_be_the_workspaces_own(self, http: httpx.Client, api: Api) -> None:
        with client(api, new_tenant()) as other:
            foreign = other.post("/v1/datasets", content=b"user,item,rating\n1,2,3\n").json()["id"]
        for dataset in (foreign, str(uuid4())):
            answer = http.post("/v1/jobs", json={"family": {"kind": "ratings", "dataset": dataset}})
            errors = check_problem(answer, 422, "invalid")["errors"]
            assert [error["pointer"] for error in errors] == ["/family/dataset"]
            assert dataset in errors[0]["detail"]

    def test_init_from_must_have_what_it_names(self, http: httpx.Client) -> None:
        def pointers(**init_from: object) -> list[str]:
            answer = http.post("/v1/jobs", json={**SPEC, "meta": {"init_from": init_from}})
            return [error["pointer"] for error in check_problem(answer, 422, "invalid")["errors"]]

        unfinished = submit(http)
        assert pointers(job=str(uuid4())) == ["/meta/init_from/job"]
        assert pointers(job=unfinished) == ["/meta/init_from/job"]
        assert pointers(job=unfinished, step=50) == ["/meta/init_from/step"]
        with transaction() as session:
            progress.add_checkpoint(session, session.get_one(Job, UUID(unfinished)), 50, blobs.write([b"c"]).blob_id)
        submit(http, meta={"init_from": {"job": unfinished, "step": 50}})


class TestIdempotency:
    def test_a_repeat_gets_the_stored_answer(self, http: httpx.Client) -> None:
        headers = {"Idempotency-Key": "one"}
        first = http.post("/v1/jobs", json=SPEC, headers=headers)
        http.post(f"/v1/jobs/{first.json()['id']}/cancel")
        again = http.post("/v1/jobs", json=SPEC, headers=headers)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["location"] == first.headers["location"]
        assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
        assert len(http.get("/v1/jobs").json()["data"]) == 1

    def test_another_spec_is_refused(self, http: httpx.Client) -> None:
        headers = {"Idempotency-Key": "one"}
        http.post("/v1/jobs", json=SPEC, headers=headers)
        answer = http.post("/v1/jobs", json={**SPEC, "name": "other"}, headers=headers)
        check_problem(answer, 422, "idempotency_mismatch")

    def test_a_refused_spec_leaves_the_key_free(self, http: httpx.Client) -> None:
        headers = {"Idempotency-Key": "one"}
        bad = {"family": {"kind": "ratings", "dataset": str(uuid4())}}
        check_problem(http.post("/v1/jobs", json=bad, headers=headers), 422, "invalid")
        assert http.post("/v1/jobs", json=SPEC, headers=headers).status_code == 201

    def test_keys_of_workspaces_are_apart(self, http: httpx.Client, api: Api) -> None:
        headers = {"Idempotency-Key": "one"}
        first = http.post("/v1/jobs", json=SPEC, headers=headers).json()["id"]
        with client(api, new_tenant()) as other:
            assert other.post("/v1/jobs", json=SPEC, headers=headers).json()["id"] != first

    def test_many_at_once_submit_one_job(self, http: httpx.Client) -> None:
        barrier = threading.Barrier(8)

        def send(_: int) -> str:
            barrier.wait()
            answer = http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "race"})
            assert answer.status_code == 201, answer.text
            job_id: str = answer.json()["id"]
            return job_id

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(send, range(8)))) == 1
        assert len(http.get("/v1/jobs").json()["data"]) == 1

    def test_a_first_request_that_is_not_through_conflicts(self, http: httpx.Client, tenant: Tenant) -> None:
        spec = JobSpec.model_validate(SPEC)
        with transaction() as session:
            assert idempotency.take(session, tenant.workspace_id, "slow", spec.sha256()) is None
            answer = http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "slow"})
            check_problem(answer, 409, "idempotency_in_flight")
            session.rollback()
        assert http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "slow"}).status_code == 201

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode("latin-1")])
    def test_a_malformed_key_is_refused(self, http: httpx.Client, key: str | bytes) -> None:
        check_problem(http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key}), 400, "bad_header")


class TestWaiting:
    def test_the_answer_comes_when_the_job_ends(self, http: httpx.Client) -> None:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, "/v1/jobs", json=SPEC, headers={"Prefer": "respond-async, wait=60"})
            [job] = wait_until(lambda: http.get("/v1/jobs").json()["data"])
            http.post(f"/v1/jobs/{job['id']}/cancel")
            answer = asked.result(CEILING_SECONDS)
        assert (answer.status_code, answer.json()["state"]) == (201, "cancelled")
        assert answer.headers["preference-applied"] == "wait=60"

    def test_it_is_the_end_that_wakes_the_answer_and_no_clock(
        self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def is_set_within(event: asyncio.Event, _: float) -> bool:
            return await event.wait()

        monkeypatch.setattr(waiting, "is_set_within", is_set_within)
        job_id, looks = UUID(submit(http)), threading.Semaphore(0)

        def has_ended(of: UUID) -> bool:
            looks.release()
            return job_of(of).state in FINAL

        async def wait() -> None:
            listening = Waiters()
            listening.start()
            answering = asyncio.create_task(waiting.until(listening, job_id, has_ended, waiting.LONGEST_WAIT))
            await asyncio.to_thread(looks.acquire)
            await asyncio.to_thread(http.post, f"/v1/jobs/{job_id}/cancel")
            await answering
            listening.stop()

        asyncio.run(wait())
        assert job_of(job_id).state == "cancelled"

    def test_the_wait_is_over_in_time(self, http: httpx.Client) -> None:
        began = time.monotonic()
        answer = http.post("/v1/jobs", json=SPEC, headers={"Prefer": "wait=1"})
        assert time.monotonic() - began >= 1
        assert (answer.status_code, answer.json()["state"]) == (201, "queued")
