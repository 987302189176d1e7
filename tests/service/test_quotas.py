"""Quotas at the HTTP face: what is refused, how exactly, and what /v1/usage says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2 as httpx
import jsonschema
import pytest
from sqlalchemy import func, select, update

from service.core import blobs, quotas, workspaces
from service.core.database import transaction
from service.core.quota_bounds import LEAST, MEANINGS, Bounds, Name
from service.core.tables import ComputeUse
from service.jobs.estimate import expected_seconds
from service.jobs.tables import Attempt, Job
from service.main import app
from tests.support.api import SPEC, Api, Tenant, check_problem, client, new_tenant, submit
from tests.support.jobs import claim, stop, succeed

CSV = b"user,item,rating\n1,10,4.0\n1,11,2.5\n"


def bound(tenant: Tenant, **bounds: int | None) -> None:
    with transaction() as session:
        for name, value in bounds.items():
            workspaces.set_quota(session, tenant.workspace_id, name, value)  # type: ignore[arg-type]


def usage(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/v1/usage").json()
    return found


def refused(answer: httpx.Response, name: Name) -> dict[str, Any]:
    problem = check_problem(answer, 403, "quota_exceeded")
    assert problem["quota"]["name"] == name
    assert name in problem["detail"]
    assert str(problem["quota"]["bound"]) in problem["detail"]
    assert "ask the operator" in problem["detail"]
    return problem


def ran_for(job_id: str, seconds: float, attempt: int = 1) -> None:
    """The attempt, which runs, began so long ago."""
    which = (Attempt.job_id == UUID(job_id)) & (Attempt.number == attempt)
    with transaction() as session:
        session.execute(update(Attempt).where(which).values(started_at=func.now() - timedelta(seconds=seconds)))


class Spent:
    """Compares the seconds that a workspace has used with what a test has let pass, and what has passed by itself."""

    def __init__(self, http: httpx.Client) -> None:
        self._http, self._began = http, time.monotonic()

    def check(self, seconds: float) -> None:
        used = usage(self._http)["compute_seconds"]["used"]
        assert used == pytest.approx(seconds, abs=time.monotonic() - self._began + 1)


@pytest.fixture
def other(api: Api, store: str) -> Iterator[httpx.Client]:
    with client(api, new_tenant()) as ready:
        yield ready


def test_the_names_are_the_same_everywhere() -> None:
    assert set(MEANINGS) == set(LEAST) == set(Bounds._fields)


def test_usage_is_what_the_reference_says_and_begins_at_nothing(http: httpx.Client) -> None:
    found = usage(http)
    document = app.openapi()
    schema = {"$ref": "#/components/schemas/UsageDocument", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(found)
    assert set(found) == set(MEANINGS)
    assert {one["used"] for one in found.values()} == {0}


class TestQueue:
    def test_what_waits_is_counted_and_bounded(self, http: httpx.Client, tenant: Tenant, other: httpx.Client) -> None:
        bound(tenant, queued_jobs=2)
        first = submit(http)
        submit(http)
        assert usage(http)["queued_jobs"] == {"used": 2, "bound": 2}
        problem = refused(http.post("/v1/jobs", json=SPEC), "queued_jobs")
        assert problem["quota"] == {"name": "queued_jobs", "bound": 2, "used": 2, "asked": 1}
        assert len(http.get("/v1/jobs").json()["data"]) == 2
        submit(other)
        claim(first)
        submit(http)
        refused(http.post("/v1/jobs", json=SPEC), "queued_jobs")

    def test_it_is_exact_among_submissions_at_once(self, http: httpx.Client, tenant: Tenant) -> None:
        bound(tenant, queued_jobs=5)
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/jobs", json=SPEC), range(24)))
        assert sorted(answer.status_code for answer in answers) == [201] * 5 + [403] * 19
        assert usage(http)["queued_jobs"]["used"] == 5

    def test_a_refused_request_can_be_repeated_with_its_key(self, http: httpx.Client, tenant: Tenant) -> None:
        bound(tenant, queued_jobs=0)
        headers = {"Idempotency-Key": "later"}
        refused(http.post("/v1/jobs", json=SPEC, headers=headers), "queued_jobs")
        bound(tenant, queued_jobs=1)
        assert http.post("/v1/jobs", json=SPEC, headers=headers).status_code == 201

    def test_a_study_comes_in_whole_or_not_at_all(self, http: httpx.Client, tenant: Tenant) -> None:
        bound(tenant, queued_jobs=3)
        study = {"base": SPEC, "grid": {"/runtime/seed": [0, 1, 2, 3]}, "concurrency": 1}
        refused(http.post("/v1/studies", json=study), "queued_jobs")
        assert http.get("/v1/studies").json()["data"] == []
        bound(tenant, queued_jobs=4)
        assert http.post("/v1/studies", json=study).status_code == 201

    def test_a_dry_run_asks_for_nothing(self, http: httpx.Client, tenant: Tenant) -> None:
        bound(tenant, queued_jobs=0)
        assert http.post("/v1/jobs?dry_run=true", json=SPEC).status_code == 200


class TestCompute:
    def test_a_spec_is_estimated_before_it_is_queued(self, http: httpx.Client, tenant: Tenant) -> None:
        estimated = http.post("/v1/jobs?dry_run=true", json=SPEC).json()["estimate"]["seconds"]
        assert estimated > 0
        bound(tenant, compute_seconds=0)
        assert refused(http.post("/v1/jobs", json=SPEC), "compute_seconds")["quota"]["asked"] == estimated
        assert len(http.get("/v1/jobs").json()["data"]) == 0

    def test_max_seconds_bounds_the_estimate(self, http: httpx.Client, tenant: Tenant) -> None:
        large = {**SPEC, "meta": {"iterations": 1_000_000}}
        bound(tenant, compute_seconds=100)
        refused(http.post("/v1/jobs", json=large), "compute_seconds")
        assert http.post("/v1/jobs", json={**large, "runtime": {"max_seconds": 60}}).status_code == 201
        assert usage(http)["compute_seconds"]["expected"] == 60
        refused(http.post("/v1/jobs", json={**large, "runtime": {"max_seconds": 60}}), "compute_seconds")

    def test_attempts_are_counted_while_they_run_and_after(self, http: httpx.Client, tenant: Tenant) -> None:
        job = submit(http, runtime={"max_seconds": 1})
        estimated, spent = usage(http)["compute_seconds"]["expected"], Spent(http)
        claim(job)
        ran_for(job, 100)
        spent.check(100)
        assert (estimated, usage(http)["compute_seconds"]["expected"]) == (pytest.approx(1, abs=0.99), 0)
        stop(job)
        spent.check(100)
        claim(job)
        ran_for(job, 50, attempt=2)
        succeed(job, b"theta")
        spent.check(150)
        # What was used stays so when the job is deleted.
        assert http.delete(f"/v1/jobs/{job}").status_code == 204
        spent.check(150)
        bound(tenant, compute_seconds=140)
        refused(http.post("/v1/jobs", json=SPEC), "compute_seconds")

    def test_a_day_later_it_is_forgotten(self, http: httpx.Client, tenant: Tenant) -> None:
        job = submit(http)
        claim(job)
        ran_for(job, 10 * 24 * 3600)
        succeed(job, b"theta")
        assert usage(http)["compute_seconds"]["used"] == 24 * 3600
        with transaction() as session:
            own = ComputeUse.workspace_id == tenant.workspace_id
            session.execute(update(ComputeUse).where(own).values(hour=func.now() - timedelta(hours=24)))
        assert usage(http)["compute_seconds"]["used"] == 0
        with transaction() as session:
            session.execute(update(ComputeUse).where(own).values(hour=func.now() - timedelta(days=31)))
            quotas.forget(session)
            assert session.scalar(select(func.count()).select_from(ComputeUse).where(own)) == 0

    def test_a_family_that_cannot_be_estimated_counts_by_its_limit(self) -> None:
        from amaml.spec import JobSpec

        spec = JobSpec.model_validate({**SPEC, "runtime": {"max_seconds": 5}, "meta": {"iterations": 1_000_000}})
        assert expected_seconds(spec) == 5


class TestStored:
    def test_files_are_counted_and_bounded(self, http: httpx.Client, tenant: Tenant) -> None:
        first = http.post("/v1/datasets", content=CSV).json()["id"]
        assert usage(http)["stored_bytes"]["used"] == len(CSV)
        job = submit(http)
        claim(job)
        succeed(job, b"theta")
        assert usage(http)["stored_bytes"]["used"] == len(CSV) + 5
        bound(tenant, stored_bytes=2 * len(CSV) + 5)
        refused(http.post("/v1/datasets", content=CSV + b"2,10,1.0\n"), "stored_bytes")
        assert usage(http)["stored_bytes"]["used"] == len(CSV) + 5
        assert http.post("/v1/datasets", content=CSV).json()["id"] == first
        bound(tenant, stored_bytes=len(CSV) + 5)
        refused(http.post("/v1/jobs", json=SPEC), "stored_bytes")
        assert http.delete(f"/v1/datasets/{first}").status_code == 204
        submit(http)

    def test_a_body_of_unknown_length_is_judged_at_its_end(self, http: httpx.Client, tenant: Tenant) -> None:
        bound(tenant, stored_bytes=len(CSV))
        refused(http.post("/v1/datasets", content=iter([CSV, b"2,10,1.0\n"])), "stored_bytes")
        assert http.post("/v1/datasets", content=iter([CSV])).status_code == 201

    def test_it_is_not_crossed_by_uploads_at_once(self, http: httpx.Client, tenant: Tenant) -> None:
        rows = [CSV + b"2,10,%d.0\n" % (number % 5) + b"3,%d,1.0\n" % (10 + number) for number in range(8)]
        bound(tenant, stored_bytes=3 * len(rows[0]))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda rows: http.post("/v1/datasets", content=iter([rows])).status_code, rows))
        assert set(answers) <= {201, 403}
        assert answers.count(201) <= 3
        assert usage(http)["stored_bytes"]["used"] <= 3 * len(rows[0])


def test_files_of_a_worker_belong_to_the_workspace_once_they_are_referred_to(http: httpx.Client) -> None:
    job = submit(http)
    claim(job)
    blobs.write([b"nobody's yet"])
    assert usage(http)["stored_bytes"]["used"] == 0
    succeed(job, b"theta")
    with transaction() as session:
        assert session.get_one(Job, UUID(job)).initialization_blob_id is not None
    assert usage(http)["stored_bytes"]["used"] == 5
