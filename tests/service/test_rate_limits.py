"""Rate limits: the bucket as arithmetic, and what a key sees of it over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from service.http.rate_limits import Buckets
from service.keys import store as keys
from service.main import build
from tests.support.api import Api, Tenant, check_problem, client, new_tenant, serving

BURST = 5


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestBuckets:
    def test_a_burst_and_then_the_rate(self) -> None:
        clock = Clock()
        buckets = Buckets(2.0, 3, clock)
        assert buckets.take(b"a") is None
        buckets.open(b"a")
        stood = [buckets.take(b"a") for _ in range(4)]
        assert [(one.allowed, one.remaining) for one in stood if one] == [(True, 2), (True, 1), (True, 0), (False, 0)]
        assert stood[-1] is not None
        assert stood[-1].next_in == 0.5
        assert stood[-1].full_in == 1.5
        clock.now += 0.5
        allowed = [buckets.take(b"a") for _ in range(2)]
        assert [one.allowed for one in allowed if one] == [True, False]

    def test_over_a_long_time_the_rate_holds(self) -> None:
        clock = Clock()
        buckets = Buckets(2.0, 3, clock)
        buckets.open(b"a")
        passed = 0
        for _ in range(1_000):
            clock.now += 0.1
            standing = buckets.take(b"a")
            passed += standing is not None and standing.allowed
        assert passed == pytest.approx(3 + 2.0 * 100, abs=1)

    def test_a_pause_fills_it_and_no_further(self) -> None:
        clock = Clock()
        buckets = Buckets(2.0, 3, clock)
        buckets.open(b"a")
        clock.now += 1_000
        standing = buckets.take(b"a")
        assert standing is not None
        assert standing.remaining == 2

    def test_opening_again_gives_no_tokens(self) -> None:
        buckets = Buckets(1.0, 1, Clock())
        for expected in (True, False, False):
            buckets.open(b"a")
            standing = buckets.take(b"a")
            assert standing is not None
            assert standing.allowed is expected

    def test_what_is_full_again_is_forgotten(self) -> None:
        clock = Clock()
        buckets = Buckets(1.0, 2, clock)
        for number in range(5_000):
            buckets.open(b"%d" % number)
            buckets.take(b"%d" % number)
            clock.now += 0.1
        assert len(buckets) < 1_100
        last = buckets.take(b"4999")
        assert last is not None


@pytest.fixture(scope="module")
def api(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that lets a key make five requests at once, and then none for longer than a test takes."""
    limits = {"AMAML_RATE_LIMIT": "0.001", "AMAML_RATE_BURST": str(BURST)}
    with serving(service_database, tmp_path_factory.mktemp("strict") / "log", **limits) as running:
        yield running


def standing(answer: httpx.Response) -> int:
    assert answer.headers["ratelimit-policy"] == f'"key";q={BURST};w=5000'
    match = re.fullmatch(r'"key";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert match is not None
    assert 0 <= int(match[2]) <= 5_000
    return int(match[1])


def test_answers_say_how_the_key_stands_and_then_refuse(http: httpx.Client, api: Api) -> None:
    answers = [
        http.get("/v1/jobs"),
        http.get("/v1/jobs/nonsense"),
        http.post("/v1/jobs", json={}),
        http.get("/v1/usage"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 422, 200]
    assert [standing(answer) for answer in answers] == [4, 3, 2, 1]
    assert http.get("/v1/workers").status_code == 200
    refused = http.get("/v1/jobs")
    problem = check_problem(refused, 429, "rate_limited")
    assert standing(refused) == 0
    wait = int(refused.headers["retry-after"])
    assert 1 <= wait <= 1_000
    assert f"wait {wait} s" in problem["detail"]
    assert len(refused.headers.get_list("ratelimit")) == 1
    with client(api, new_tenant()) as other:
        assert other.get("/v1/jobs").status_code == 200
    for path in ("/healthz", "/openapi.json", "/docs"):
        open_to_all = http.get(path)
        assert open_to_all.status_code == 200
        assert "ratelimit" not in open_to_all.headers


@pytest.mark.usefixtures("store")
def test_who_waits_as_long_as_was_said_is_let_in(tenant: Tenant) -> None:
    app, clock = build(), Clock()
    limit = app.state.rate_limit
    limit._rate, limit._burst, limit._buckets = 0.4, 2, Buckets(0.4, 2, clock)

    async def ask() -> None:
        headers = {"Authorization": f"Bearer {tenant.key}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as inside:
            assert [(await inside.get("/v1/jobs")).status_code for _ in range(3)] == [200, 200, 429]
            wait = int((await inside.get("/v1/jobs")).headers["retry-after"])
            assert wait == 3
            clock.now += wait - 1
            assert (await inside.get("/v1/jobs")).status_code == 429
            clock.now += 1
            assert [(await inside.get("/v1/jobs")).status_code for _ in range(2)] == [200, 429]

    asyncio.run(ask())


def test_it_holds_for_requests_at_once(http: httpx.Client) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: http.get("/v1/workers").status_code, range(20)))
    assert answers.count(200) == BURST
    assert set(answers) == {200, 429}


def test_a_key_that_is_none_has_no_bucket(api: Api) -> None:
    made_up = {"Authorization": f"Bearer {keys.new_key()}"}
    for _ in range(BURST + 2):
        answer = httpx.get(f"{api.url}/v1/jobs", headers=made_up)
        check_problem(answer, 401, "unauthenticated")
        assert "ratelimit" not in answer.headers


def test_without_a_limit_there_are_no_headers(service_database: str, tenant: Tenant, tmp_path: Path) -> None:
    with (
        serving(service_database, tmp_path / "log", AMAML_RATE_LIMIT="0") as running,
        client(running, tenant) as http,
    ):
        assert "ratelimit" not in http.get("/v1/jobs").headers
