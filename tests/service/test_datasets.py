"""Data sets over HTTP: streamed in, checked by line, known by content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx2 as httpx
import pytest
from sqlalchemy import delete, func, select

from amaml.dataset_format import Detected
from service.core import blobs
from service.core.database import transaction
from service.core.tables import Blob
from service.datasets import store as datasets
from service.datasets.tables import Dataset
from service.jobs.tables import Job
from tests.support.api import Api, Tenant, check_problem, client, new_tenant, serving, submit
from tests.support.waiting import wait_until
from worker.datasets.checks import DatasetChecks
from worker.settings import WorkerSettings

CSV = b"user,item,rating\n1,10,4.0\n1,11,2.5\n2,10,1\n"


@pytest.fixture
def check(store: str, tmp_path: Path) -> Callable[[], None]:
    """Does what a worker does about data sets that wait; those of other tests are gone."""
    read = select(Job.dataset_id).where(Job.dataset_id.is_not(None))
    with transaction() as session:
        session.execute(delete(Dataset).where(Dataset.state == "pending", Dataset.id.not_in(read)))
    return DatasetChecks(WorkerSettings(broker_url="redis://none"), tmp_path, threading.Event()).step


def _blob_count() -> int:
    with transaction() as session:
        return session.scalars(select(func.count()).select_from(Blob)).one()


def test_an_upload_is_checksummed_and_then_checked(http: httpx.Client, check: Callable[[], None]) -> None:
    answer = http.post("/v1/datasets", params={"name": "mine"}, content=CSV)
    assert answer.status_code == 201
    dataset = answer.json()
    path = f"/v1/datasets/{dataset['id']}"
    assert answer.headers["location"] == path
    assert UUID(dataset["id"]).version == 7
    known = {
        "name": "mine", "version": 1, "format": "csv", "families": ["ratings", "table"],
        "sha256": hashlib.sha256(CSV).hexdigest(), "bytes": len(CSV),
        "links": {"self": path, "content": f"{path}/content"},
    }  # fmt: skip
    assert dataset.items() >= known.items()
    assert [dataset[key] for key in ("state", "rows", "tasks", "report", "checked_at")] == ["pending", *[None] * 4]
    assert http.get(path).json() == dataset
    check()
    checked = http.get(path).json()
    assert checked.items() >= {**known, "state": "ready", "rows": 3, "tasks": 2, "status_detail": None}.items()
    assert checked["report"] == {
        "rows": 3, "tasks": 2, "images": None, "errors": [],
        "columns": [
            {"name": "user", "type": "integer", "missing": 0},
            {"name": "item", "type": "integer", "missing": 0},
            {"name": "rating", "type": "number", "missing": 0},
        ],
    }  # fmt: skip
    without_report = {name: value for name, value in checked.items() if name != "report"}
    assert http.get("/v1/datasets").json() == {"data": [without_report], "next_cursor": None}


def test_a_large_upload_arrives_whole_and_takes_no_memory(http: httpx.Client, api: Api) -> None:
    line = b"12345,67890,3.5\n"
    head, block = b"user,item,rating\n", line * 16_384

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(40):
            yield block

    before = _peak_bytes(api.pid)
    answer = http.post("/v1/datasets", content=body())
    assert answer.status_code == 201, answer.text
    whole = head + 40 * block
    assert answer.json()["sha256"] == hashlib.sha256(whole).hexdigest()
    with transaction() as session:
        blob_id = session.get_one(Dataset, UUID(answer.json()["id"])).blob_id
    assert b"".join(blobs.read(blob_id)) == whole
    assert _peak_bytes(api.pid) - before < 30_000_000


def test_the_same_bytes_are_the_same_data_set(http: httpx.Client, api: Api) -> None:
    first = http.post("/v1/datasets", content=CSV, params={"name": "a"}).json()
    blobs_before = _blob_count()
    barrier = threading.Barrier(4)

    def send(_: int) -> httpx.Response:
        barrier.wait()
        return http.post("/v1/datasets", content=CSV, params={"name": "b", "format": "csv"})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))
    assert [(answer.status_code, answer.json()) for answer in answers] == [(201, first)] * 4
    assert _blob_count() == blobs_before
    with client(api, new_tenant()) as other:
        assert other.post("/v1/datasets", content=CSV).json()["id"] != first["id"]


def test_the_same_bytes_again_are_read_by_families_that_were_installed_since(store: str, tenant: Tenant) -> None:
    def add(*families: str) -> Dataset:
        file = blobs.write([CSV])
        with transaction() as session:
            return datasets.add(session, tenant.workspace_id, file, Detected("csv", families), "").dataset

    first, second = add("table"), add("table", "installed")
    assert (first.id, first.families) == (second.id, ["table"])
    assert second.families == ["table", "installed"]


def test_wrong_lines_are_told(http: httpx.Client, check: Callable[[], None]) -> None:
    path = http.post("/v1/datasets", content=CSV + b"x\n1,2,many\n").headers["location"]
    check()
    dataset = http.get(path).json()
    assert (dataset["state"], dataset["rows"], dataset["tasks"]) == ("invalid", None, None)
    assert [error["line"] for error in dataset["report"]["errors"]] == [5, 6]
    assert "'many'" in dataset["report"]["errors"][1]["detail"]
    assert dataset["status_detail"].startswith("Line 5: ")
    family = {"kind": "ratings", "dataset": dataset["id"]}
    errors = check_problem(http.post("/v1/jobs", json={"family": family}), 422, "invalid")["errors"]
    assert errors[0]["pointer"] == "/family/dataset"
    assert "Line 5: " in errors[0]["detail"]


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04junk", b"\x93NUMPY", b"\x80\x04\x95", b"a," * 10_000_000])
def test_files_that_are_no_ratings_are_refused(http: httpx.Client, body: bytes) -> None:
    check_problem(http.post("/v1/datasets", content=body), 422, "bad_data")


def test_a_form_is_refused_with_the_remedy(http: httpx.Client) -> None:
    problem = check_problem(http.post("/v1/datasets", files={"file": CSV}), 415, "wrong_media_type")
    assert "--data-binary" in problem["detail"]


@pytest.mark.parametrize("params", [{"format": "xlsx"}, {"name": "x" * 201}, {"name": "\x00"}])
def test_bad_parameters_are_named(http: httpx.Client, params: dict[str, str]) -> None:
    errors = check_problem(http.post("/v1/datasets", params=params, content=CSV), 422, "invalid")["errors"]
    assert [error["parameter"] for error in errors] == list(params)


def test_what_is_too_large_is_refused_and_nothing_is_kept(store: str, tenant: Tenant, tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield b"user,item,rating\n"
        while True:
            yield b"1,2,3\n" * 10_000

    with serving(store, tmp_path / "log", AMAML_MAX_DATASET_BYTES="5000000") as api, client(api, tenant) as http:
        before = _blob_count()
        check_problem(http.post("/v1/datasets", content=endless()), 413, "too_large")
        check_problem(http.post("/v1/datasets", content=b"1" * 5_000_001), 413, "too_large")
        assert _blob_count() == before


def test_an_upload_that_breaks_off_leaves_nothing(http: httpx.Client) -> None:
    before = _blob_count()

    def broken() -> Iterator[bytes]:
        yield b"user,item,rating\n" + b"1,2,3\n" * 500_000
        wait_until(lambda: _blob_count() > before)
        raise ConnectionError("the client dies")

    with pytest.raises(ConnectionError):
        http.post("/v1/datasets", content=broken())
    wait_until(lambda: _blob_count() == before)


class TestDeleting:
    def test_a_data_set_goes_with_its_file(self, http: httpx.Client) -> None:
        before = _blob_count()
        path = f"/v1/datasets/{http.post('/v1/datasets', content=CSV).json()['id']}"
        assert http.delete(path).status_code == 204
        check_problem(http.get(path), 404, "not_found")
        check_problem(http.delete(path), 404, "not_found")
        assert _blob_count() == before

    def test_one_that_a_job_reads_is_kept(self, http: httpx.Client) -> None:
        dataset = http.post("/v1/datasets", content=CSV).json()["id"]
        job = submit(http, family={"kind": "ratings", "dataset": dataset, "items": 2, "shots": 1, "queries": 1})
        check_problem(http.delete(f"/v1/datasets/{dataset}"), 409, "in_use")
        http.post(f"/v1/jobs/{job}/cancel")
        assert http.delete(f"/v1/datasets/{dataset}").status_code == 204
        assert http.get(f"/v1/jobs/{job}").json()["spec"]["family"]["dataset"] == dataset


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
