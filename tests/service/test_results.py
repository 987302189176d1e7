"""What a job has to show: curves, attempts, checkpoints, the initialization."""

from __future__ import annotations

import base64
import hashlib
import math
from uuid import UUID

import httpx2 as httpx
import pytest

from service.core import blobs
from service.core.database import transaction
from service.jobs import progress
from service.jobs.tables import Job, Metric
from tests.support.api import check_problem, submit
from tests.support.jobs import claim, stop, succeed

THETA = bytes(range(251)) * 12_000  # three chunks, the last one not full


@pytest.fixture(scope="module")
def theta_sha256() -> str:
    return hashlib.sha256(THETA).hexdigest()


@pytest.fixture
def path(http: httpx.Client) -> str:
    """Of the initialization of a job that has succeeded."""
    job_id = submit(http)
    claim(job_id)
    succeed(job_id, THETA)
    return f"/v1/jobs/{job_id}/initialization"


class TestInitialization:
    def test_the_whole_file(self, http: httpx.Client, path: str, theta_sha256: str) -> None:
        answer = http.get(path)
        assert (answer.status_code, answer.content) == (200, THETA)
        assert answer.headers["etag"] == f'"{theta_sha256}"'
        digest = base64.b64encode(hashlib.sha256(THETA).digest()).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert answer.headers["content-length"] == str(len(THETA))
        job = http.get(path.removesuffix("/initialization")).json()
        assert job["state"] == "succeeded"
        assert job["initialization"] == {"sha256": theta_sha256, "size_bytes": len(THETA), "parameters": 2_000}

    def test_its_head_alone(self, http: httpx.Client, path: str) -> None:
        answer, whole = http.head(path, headers={"Range": "bytes=0-9"}), http.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        for header in ("etag", "repr-digest", "content-length", "accept-ranges", "content-type", "content-disposition"):
            assert answer.headers[header] == whole.headers[header]

    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [
            ("0-0", 0, 1), ("0-", 0, len(THETA)), ("1000-2000", 1_000, 2_001), ("1048570-1048590", 1_048_570, 1_048_591),
            ("2097151-", 2_097_151, len(THETA)), ("-1", len(THETA) - 1, len(THETA)), ("-99999999", 0, len(THETA)),
            ("3000000-99999999", 3_000_000, len(THETA)),
        ],
    )  # fmt: skip
    def test_a_range(self, http: httpx.Client, path: str, asked: str, start: int, end: int) -> None:
        answer = http.get(path, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, THETA[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(THETA)}"

    @pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0", f"bytes={len(THETA)}-"])
    def test_a_range_outside(self, http: httpx.Client, path: str, asked: str) -> None:
        answer = http.get(path, headers={"Range": asked})
        check_problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(THETA)}"

    @pytest.mark.parametrize(
        "asked", ["bytes=", "bytes=-", "bytes=5-1", "items=0-1", "bytes=0-1,5-6", "bytes=a-b", "x"]
    )
    def test_what_is_no_single_range_gets_the_whole(self, http: httpx.Client, path: str, asked: str) -> None:
        answer = http.get(path, headers={"Range": asked})
        assert (answer.status_code, len(answer.content)) == (200, len(THETA))

    def test_if_range(self, http: httpx.Client, path: str, theta_sha256: str) -> None:
        same = http.get(path, headers={"Range": "bytes=0-9", "If-Range": f'"{theta_sha256}"'})
        other = http.get(path, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
        assert (same.status_code, other.status_code, len(other.content)) == (206, 200, len(THETA))

    def test_if_none_match(self, http: httpx.Client, path: str, theta_sha256: str) -> None:
        for header in (f'"{theta_sha256}"', f'"x", W/"{theta_sha256}"', "*"):
            answer = http.get(path, headers={"If-None-Match": header})
            assert (answer.status_code, answer.content) == (304, b"")
        assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200

    def test_before_there_is_one(self, http: httpx.Client) -> None:
        problem = check_problem(http.get(f"/v1/jobs/{submit(http)}/initialization"), 404, "no_initialization")
        assert "queued" in problem["detail"]


def test_checkpoints_are_listed_and_downloaded(http: httpx.Client) -> None:
    job_id = submit(http)
    for step in (10, 20):
        written = blobs.write([b"checkpoint %d" % step])
        with transaction() as session:
            progress.add_checkpoint(session, session.get_one(Job, UUID(job_id)), step, written.blob_id)
    listed = http.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert [(one["step"], one["size_bytes"]) for one in listed] == [(20, 13), (10, 13)]
    answer = http.get(listed[0]["links"]["self"])
    assert answer.content == b"checkpoint 20"
    assert answer.headers["etag"] == f'"{listed[0]["sha256"]}"'
    for step in ("15", "x", "010", "99999999999999999999"):
        check_problem(http.get(f"/v1/jobs/{job_id}/checkpoints/{step}"), 404, "not_found")


def test_attempts_say_why_they_ended(http: httpx.Client) -> None:
    job_id = submit(http)
    assert http.get(f"/v1/jobs/{job_id}/attempts").json() == {"data": [], "next_cursor": None}
    claim(job_id)
    stop(job_id)
    claim(job_id)
    first, second = http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
    assert (first["number"], first["reason"]) == (1, "worker_shutdown")
    assert first["ended_at"] is not None
    assert (second["number"], second["reason"], second["ended_at"]) == (2, None, None)
    page = http.get(f"/v1/jobs/{job_id}/attempts?limit=1").json()
    assert [one["number"] for one in page["data"]] == [1]
    rest = http.get(f"/v1/jobs/{job_id}/attempts", params={"cursor": page["next_cursor"]}).json()
    assert ([one["number"] for one in rest["data"]], rest["next_cursor"]) == ([2], None)
    stop(job_id)
    assert http.get(f"/v1/jobs/{job_id}").json()["phase"] is None


class TestMetrics:
    @pytest.fixture
    def job_id(self, http: httpx.Client) -> str:
        job_id = submit(http)
        with transaction() as session:
            for step in range(1, 1_001):
                spike = 100.0 if step == 617 else -100.0 if step == 618 else 0.0
                session.add(Metric(job_id=UUID(job_id), name="meta_loss", step=step, value=math.sin(step / 50) + spike))
            session.add(Metric(job_id=UUID(job_id), name="nrmse_tuned", step=500, value=0.5))
            session.add(Metric(job_id=UUID(job_id), name="lambda_max", step=1, value=math.inf))
            session.add(Metric(job_id=UUID(job_id), name="lambda_max", step=2, value=math.nan))
        return job_id

    def test_all_points_by_default(self, http: httpx.Client, job_id: str) -> None:
        curves = http.get(f"/v1/jobs/{job_id}/metrics").json()
        assert [step for step, _ in curves["meta_loss"]] == list(range(1, 1_001))
        assert curves["meta_loss"][0][1] == math.sin(1 / 50)
        assert curves["nrmse_tuned"] == [[500, 0.5]]
        assert curves["lambda_max"] == [[1, None], [2, None]]

    @pytest.mark.parametrize("max_points", [4, 5, 50, 999])
    def test_thinned_curves_keep_ends_and_spikes(self, http: httpx.Client, job_id: str, max_points: int) -> None:
        curves = http.get(f"/v1/jobs/{job_id}/metrics", params={"max_points": max_points}).json()
        points = curves["meta_loss"]
        assert max_points / 2 <= len(points) <= max_points
        steps = [step for step, _ in points]
        assert steps == sorted(steps)
        assert {1, 617, 618, 1_000} <= set(steps)
        assert curves["nrmse_tuned"] == [[500, 0.5]]

    def test_one_name_from_a_step_on(self, http: httpx.Client, job_id: str) -> None:
        curves = http.get(f"/v1/jobs/{job_id}/metrics", params={"name": "meta_loss", "from_step": 999}).json()
        assert {name: [step for step, _ in points] for name, points in curves.items()} == {"meta_loss": [999, 1_000]}
        assert http.get(f"/v1/jobs/{job_id}/metrics", params={"name": "nonesuch"}).json() == {}

    @pytest.mark.parametrize(
        ("name", "value"), [("max_points", "3"), ("max_points", "20001"), ("from_step", "-1"), ("from_step", "9" * 20)]
    )
    def test_bounds(self, http: httpx.Client, job_id: str, name: str, value: str) -> None:
        answer = http.get(f"/v1/jobs/{job_id}/metrics", params={name: value})
        assert [error["parameter"] for error in check_problem(answer, 422, "invalid")["errors"]] == [name]
