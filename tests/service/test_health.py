"""Readiness, metrics for Prometheus, and what the process is made of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, update

from service.core.database import engine, transaction
from service.keys import store as keys
from service.workers import store as workers
from service.workers.tables import Worker
from tests.support.api import Api, Tenant, check_problem, client, serving, submit, worker_seen
from tests.support.databases import ROOT
from tests.support.jobs import job_of


def test_ready_only_with_a_living_worker(anyone: httpx.Client, store: str) -> None:
    worker_id = worker_seen()
    assert anyone.get("/readyz").json() == {"status": "ready"}
    with transaction() as session:
        session.execute(update(Worker).values(seen_at=func.now() - timedelta(seconds=11)))
    assert "worker" in check_problem(anyone.get("/readyz"), 503, "unavailable")["detail"]
    with transaction() as session:
        workers.gone(session, worker_id)


@pytest.mark.parametrize("log", ["text", "json"])
def test_not_ready_before_the_schema_is_there(empty_database_url: str, tmp_path: Path, log: str) -> None:
    key = keys.new_key()
    with serving(empty_database_url, tmp_path / "log", AMAML_LOG=log) as api:
        assert "upgrade head" in check_problem(httpx.get(f"{api.url}/readyz"), 503, "unavailable")["detail"]
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        # Nothing works without tables: the answer says nothing of it but where to look.
        broken = httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"})
        problem = check_problem(broken, 500, "internal_error")
        assert problem["request_id"] in problem["detail"]
        assert "api_keys" not in broken.text
        assert problem["request_id"] in api.log.read_text()
        assert "UndefinedTable" in api.log.read_text()
        assert key not in api.log.read_text()
    engine(empty_database_url).dispose()


def test_without_a_database_it_says_so_and_lives(tmp_path: Path) -> None:
    with serving("postgresql+psycopg://nobody@127.0.0.1:1/none", tmp_path / "log") as api:
        answer = httpx.get(f"{api.url}/readyz")
        check_problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"]
        assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_workers_are_listed(http: httpx.Client) -> None:
    worker_id = worker_seen()
    found = {worker["id"]: worker for worker in http.get("/v1/workers").json()["data"]}
    assert (found[str(worker_id)]["lives"], found[str(worker_id)]["devices"]) == (True, ["cpu"])
    assert found[str(worker_id)]["gpu"] is None
    gpu = {"name": "NVIDIA H100", "memory_bytes": 85_899_345_920, "uuid": "GPU-1"}
    with transaction() as session:
        workers.seen(session, worker_id, "here", 1, ["cpu", "cuda"], gpu)
    found = {worker["id"]: worker for worker in http.get("/v1/workers").json()["data"]}
    assert (found[str(worker_id)]["devices"], found[str(worker_id)]["gpu"]) == (["cpu", "cuda"], gpu)
    with transaction() as session:
        workers.gone(session, worker_id)


def test_prometheus_sees_requests_and_jobs(http: httpx.Client) -> None:
    job_id = submit(http)
    http.get(f"/v1/jobs/{job_id}")
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    jobs = {sample.labels["state"]: sample.value for sample in families["amaml_jobs"].samples}
    assert jobs["queued"] >= 1
    looked = [
        sample.value
        for sample in families["amaml_http_requests"].samples
        if sample.labels.get("route") == "/v1/jobs/{job_id}" and sample.labels["status"] == "200"
    ]
    assert looked
    assert looked[0] >= 1
    assert not any(job_id in str(sample.labels) for family in families.values() for sample in family.samples)


def test_the_process_holds_no_torch(api: Api, http: httpx.Client) -> None:
    submit(http)
    assert "torch" not in Path(f"/proc/{api.pid}/maps").read_text()
    heavy = ("torch", "celery", "worker", "numpy", "pyarrow", "safetensors")
    code = f"import sys, service.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_ends_under_an_open_stream(store: str, tenant: Tenant, tmp_path: Path) -> None:
    with serving(store, tmp_path / "log") as api, client(api, tenant) as http:
        job_id = submit(http)
        with http.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as answer:
            os.kill(api.pid, signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        assert job_of(UUID(job_id)).state == "queued", "the stream's own end is still to come"
        api.wait()
