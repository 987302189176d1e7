"""Two API processes on one database: what is promised to a client holds whichever of them its requests come to.

Nothing here measures time. Both processes let a key make BURST requests, and hardly any more for the rest of the test, so that
what each has counted can be foretold.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2 as httpx
import pytest
from sqlalchemy import text

from launcher.ports import free_port
from service.core import quotas, workspaces
from service.core.database import transaction
from tests.service.test_events import STREAM, messages
from tests.support.api import SPEC, Api, Tenant, check_problem, client, submit
from tests.support.waiting import wait_until

BURST = 160
AT_ONCE = 4
"""Requests with one Idempotency-Key, sent at the same moment: half of them to each process."""
SENDERS = 16
"""Threads that submit, half of them to each process: fewer than quotas.NEAR, and than a process serves at once."""


class Pair(NamedTuple):
    """Clients of one key, one of each process."""

    one: httpx.Client
    other: httpx.Client


@pytest.fixture(scope="module")
def processes(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Api]]:
    """The two of them, started at the same time."""
    folder = tmp_path_factory.mktemp("pair")
    limits = {"AMAML_RATE_LIMIT": "0.001", "AMAML_RATE_BURST": str(BURST)}
    found = [
        Api({**os.environ, "AMAML_DATABASE_URL": service_database, **limits}, folder / f"{number}.log", free_port())
        for number in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        try:
            list(pool.map(Api.start, found))
            yield found
        finally:
            list(pool.map(Api.stop, found))


@pytest.fixture
def pair(processes: list[Api], tenant: Tenant) -> Iterator[Pair]:
    with client(processes[0], tenant) as one, client(processes[1], tenant) as other:
        yield Pair(one, other)


def at_once(path: str, requests: Sequence[tuple[httpx.Client, dict[str, Any]]]) -> list[httpx.Response]:
    """The answers to POST requests that are sent at the same moment, in the requests' order."""
    barrier = threading.Barrier(len(requests))

    def send(request: tuple[httpx.Client, dict[str, Any]]) -> httpx.Response:
        http, arguments = request
        barrier.wait()
        return http.post(path, **arguments)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def everything(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    """All of the workspace's things in that list, from one page."""
    page = http.get(path, params={"limit": 200}).json()
    assert page["next_cursor"] is None
    found: list[dict[str, Any]] = page["data"]
    return found


class TestOneKeySentToBoth:
    """The first request that is committed counts; the others get its answer, or are told that it isn't through."""

    def check_done_once(self, pair: Pair, path: str, **request: Any) -> str:
        """Sends the request to both at once with one key; the id of the one thing that it makes."""
        request["headers"] = {"Idempotency-Key": str(uuid4())}
        answers = at_once(path, [(http, request) for http in pair * (AT_ONCE // 2)])
        done = [answer for answer in answers if answer.status_code != 409]
        for answer in answers:
            if answer not in done:
                check_problem(answer, 409, "idempotency_in_flight")
        assert {answer.status_code for answer in done} == {201}, [answer.text for answer in done]
        assert sum("idempotency-replayed" not in answer.headers for answer in done) == 1
        for http in pair:
            done.append(http.post(path, **request))
            assert done[-1].headers["idempotency-replayed"] == "true"
        assert len({json.dumps(answer.json(), sort_keys=True) for answer in done}) == 1
        found: str = done[0].json()["id"]
        return found

    def test_makes_one_job(self, pair: Pair) -> None:
        made = [self.check_done_once(pair, "/v1/jobs", json=SPEC) for _ in range(20)]
        listed = [job["id"] for job in everything(pair.other, "/v1/jobs")]
        assert listed == made[::-1]

    def test_makes_one_data_set_and_one_version_of_it(self, pair: Pair) -> None:
        files = [b"user,item,rating\n1,10,4.0\n1,11,%d.5\n" % number for number in range(10)]
        made = [self.check_done_once(pair, "/v1/datasets?name=films", content=file) for file in files]
        listed = everything(pair.other, "/v1/datasets")
        assert [dataset["id"] for dataset in listed] == made[::-1]
        assert sorted(dataset["version"] for dataset in listed) == list(range(1, 11))

    def test_makes_one_study_with_each_of_its_jobs_once(self, pair: Pair) -> None:
        study = {"base": SPEC, "grid": {"/runtime/seed": [0, 1, 2]}, "concurrency": 1}
        made = [self.check_done_once(pair, "/v1/studies", json=study) for _ in range(5)]
        assert [found["id"] for found in everything(pair.other, "/v1/studies")] == made[::-1]
        assert Counter(job["study_id"] for job in everything(pair.one, "/v1/jobs")) == dict.fromkeys(made, 3)

    def test_for_two_requests_does_one_and_refuses_the_other(self, pair: Pair) -> None:
        for number in range(10):
            headers = {"Idempotency-Key": f"key-{number}"}
            specs = [{**SPEC, "name": name} for name in ("this", "that")]
            requests = [{"json": spec, "headers": headers} for spec in specs]
            answers = at_once("/v1/jobs", list(zip(pair, requests, strict=True)))
            done, refused = sorted(answers, key=lambda answer: answer.status_code)
            assert done.status_code == 201, done.text
            if refused.status_code == 409:
                check_problem(refused, 409, "idempotency_in_flight")
            else:
                check_problem(refused, 422, "idempotency_mismatch")
        assert len(everything(pair.one, "/v1/jobs")) == 10


class TestQuotas:
    """Near a bound submissions are let in one at a time, by a lock in the database that all processes share."""

    @staticmethod
    def let_through(pair: Pair, submissions: int, body: dict[str, Any]) -> int:
        """How many of so many submissions, sent by SENDERS threads to both processes, are accepted; the rest is refused."""
        with ThreadPoolExecutor(SENDERS) as pool:
            answers = list(pool.map(lambda number: pair[number % 2].post("/v1/jobs", json=body), range(submissions)))
        accepted = [answer for answer in answers if answer.status_code == 201]
        for answer in answers:
            if answer not in accepted:
                check_problem(answer, 403, "quota_exceeded")
        return len(accepted)

    @staticmethod
    def bound(tenant: Tenant, name: Any, value: int) -> None:
        with transaction() as session:
            workspaces.set_quota(session, tenant.workspace_id, name, value)

    @staticmethod
    def queued(tenant: Tenant) -> int:
        with transaction() as session:
            return quotas.use(session, tenant.workspace_id).queued_jobs

    def test_a_small_queue_is_filled_to_its_bound_and_no_further(self, pair: Pair, tenant: Tenant) -> None:
        for bound in (20, 40, 60):
            self.bound(tenant, "queued_jobs", bound)
            assert self.let_through(pair, 50, SPEC) == 20
            assert self.queued(tenant) == bound

    def test_the_estimate_of_compute_seconds_reaches_its_bound_and_goes_no_further(
        self, pair: Pair, tenant: Tenant
    ) -> None:
        a_minute = {**SPEC, "meta": {"iterations": 1_000_000}, "runtime": {"max_seconds": 60}}
        self.bound(tenant, "compute_seconds", 25 * 60 + 59)
        assert self.let_through(pair, 60, a_minute) == 25
        with transaction() as session:
            assert quotas.use(session, tenant.workspace_id).expected_seconds == 25 * 60

    def test_a_long_queue_is_filled_to_its_bound_and_no_further(self, pair: Pair, tenant: Tenant) -> None:
        """It begins where nothing is locked yet, and what is counted may be remembered."""
        bound, room = 1_200, quotas.NEAR + 30
        self.bound(tenant, "queued_jobs", bound)
        submit(pair.one)
        fill(tenant, bound - room - 1)
        assert self.queued(tenant) == bound - room > quotas.LONG
        assert self.let_through(pair, 2 * (BURST - 10), SPEC) == room
        assert self.queued(tenant) == bound


def fill(tenant: Tenant, jobs: int) -> None:
    """Queues so many copies of the workspace's one job."""
    with transaction() as session:
        columns = "workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, estimated_seconds"
        copies = text(
            f"INSERT INTO jobs ({columns}) SELECT {columns} FROM jobs, generate_series(1, :jobs) "  # noqa: S608
            "WHERE workspace_id = :workspace"
        )
        session.execute(copies, {"jobs": jobs, "workspace": tenant.workspace_id})


class TestRateLimits:
    """Each process counts what comes to itself, as docs/decisions/rate-limits-in-the-process.md says."""

    def test_each_process_allows_the_whole_burst_and_tells_its_own_standing(self, pair: Pair) -> None:
        for http in pair:
            answers = [http.get("/v1/jobs/nonsense") for _ in range(BURST + 2)]
            assert Counter(answer.status_code for answer in answers) == {404: BURST, 429: 2}
            left = [re.fullmatch(r'"key";r=(\d+);t=\d+', answer.headers["ratelimit"]) for answer in answers]
            assert [int(match[1]) for match in left if match] == [*range(BURST)[::-1], 0, 0]
            assert {answer.headers["ratelimit-policy"].split(";w=")[0] for answer in answers} == {f'"key";q={BURST}'}
            check_problem(answers[-1], 429, "rate_limited")


class TestWhatOneDoesTheOtherKnows:
    def made_key(self, http: httpx.Client) -> tuple[str, dict[str, str]]:
        made = http.post("/v1/api-keys", json={"name": "short-lived"})
        assert made.status_code == 201, made.text
        return made.json()["id"], {"Authorization": f"Bearer {made.json()['key']}"}

    def test_a_key_is_known_and_when_revoked_refused_by_both(self, pair: Pair) -> None:
        """By a process that has used it within the last second the key may be taken for good until that second is over."""
        key_id, headers = self.made_key(pair.one)
        for http in pair:
            assert http.get("/v1/usage", headers=headers).status_code == 200
        assert pair.one.delete(f"/v1/api-keys/{key_id}").status_code == 204
        check_problem(pair.one.get("/v1/usage", headers=headers), 401, "unauthenticated")
        wait_until(lambda: pair.other.get("/v1/usage", headers=headers).status_code == 401)
        assert (
            "revoked" in check_problem(pair.other.get("/v1/usage", headers=headers), 401, "unauthenticated")["detail"]
        )

    def test_a_key_that_the_other_has_not_used_is_refused_there_at_once(self, pair: Pair) -> None:
        key_id, headers = self.made_key(pair.one)
        assert pair.one.get("/v1/usage", headers=headers).status_code == 200
        assert pair.one.delete(f"/v1/api-keys/{key_id}").status_code == 204
        check_problem(pair.other.get("/v1/usage", headers=headers), 401, "unauthenticated")

    def test_a_job_is_steered_and_deleted_through_either(self, pair: Pair) -> None:
        one, other = pair
        path = f"/v1/jobs/{submit(one)}"
        for http, looks, word, state in (
            (one, other, "pause", "paused"),
            (other, one, "resume", "queued"),
            (one, other, "cancel", "cancelled"),
        ):
            before = looks.get(path)
            seen = {"If-None-Match": before.headers["etag"]}
            assert looks.get(path, headers=seen).status_code == 304
            assert http.post(f"{path}/{word}").status_code == 202
            now = looks.get(path, headers=seen)
            assert (now.status_code, now.json()["state"]) == (200, state)
        assert other.delete(path).status_code == 204
        check_problem(one.get(path), 404, "not_found")
        assert everything(one, "/v1/jobs") == []

    def test_an_event_stream_at_one_tells_what_is_done_through_the_other(self, pair: Pair) -> None:
        path = f"/v1/jobs/{submit(pair.one)}"
        with pair.one.stream("GET", f"{path}/events", headers=STREAM) as answer:
            heard = messages(answer)
            states = [json.loads(next(heard)["data"])["data"]["state"]]
            for word in ("pause", "resume", "cancel"):
                assert pair.other.post(f"{path}/{word}").status_code == 202
                states.append(json.loads(next(heard)["data"])["data"]["state"])
            end = next(heard)
            assert (end["event"], json.loads(end["data"])) == ("end", {"state": "cancelled"})
            assert list(heard) == []
        assert states == ["queued", "paused", "queued", "cancelled"]

    def test_who_waits_at_one_is_answered_when_the_job_ends_through_the_other(self, pair: Pair) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(pair.one.post, "/v1/jobs", json=SPEC, headers={"Prefer": "wait=60"})
            (job,) = wait_until(lambda: everything(pair.other, "/v1/jobs"))
            assert pair.other.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
            answer = waiting.result()
        assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (201, job["id"], "cancelled")

    def test_quotas_and_what_is_used_of_them_are_the_same_at_both(self, pair: Pair, tenant: Tenant) -> None:
        for http in pair:
            submit(http)
        TestQuotas.bound(tenant, "queued_jobs", 2)
        assert [http.get("/v1/usage").json()["queued_jobs"] for http in pair] == [{"used": 2, "bound": 2}] * 2
        assert everything(pair.one, "/v1/jobs") == everything(pair.other, "/v1/jobs")
