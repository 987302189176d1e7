"""A family that an installed package offers is a full citizen: the service does all with it that it does with its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from service.core.database import transaction
from service.keys import store as keys
from tests.support.api import check_problem, serving
from tests.support.waiting import CEILING_SECONDS, wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.processes

INSTALLED = Path(__file__).parents[1] / "plugin"
"""As a folder of installed packages is: the package, and beside it what its installation says of it."""
WITH_IT = {"PYTHONPATH": os.pathsep.join([str(INSTALLED), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
LOADS = """
import sys, amaml
learned = amaml.load(sys.argv[1]).learned_model
print(learned.objective.name, type(learned.spec.family).__name__, learned.inputs)
"""


@pytest.fixture(scope="module")
def http(shared_store: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An API and a worker of a machine where the package is installed."""
    workers = Workers(shared_store, valkey_url, tmp_path_factory.mktemp("home"))
    workers.start(AMAML_ADAPTERS="1", **WITH_IT)
    with transaction() as session:
        _, key = keys.add(session, keys.ensure_workspace(session, "default"), "test")
    with serving(shared_store, tmp_path_factory.mktemp("api") / "log", **WITH_IT) as api:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=CEILING_SECONDS, verify=False) as client:
            yield client
    workers.stop()


def measured() -> bytes:
    """Springs of their own amplitude, ten times each."""
    lines = ["springs, version 1"]
    for spring in range(20):
        lines += [f"s{spring} {time} {(1 + spring / 10) * math.sin(time / 3)}" for time in range(10)]
    return "\n".join(lines).encode() + b"\n"


def ended(http: httpx.Client, path: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        document: dict[str, Any] = http.get(path).json()
        return None if document["state"] in ("pending", "queued", "running") else document

    return wait_until(look)  # type: ignore[return-value]


def test_it_goes_the_whole_way(http: httpx.Client, tmp_path: Path) -> None:
    uploaded = http.post("/v1/datasets", content=measured())
    assert uploaded.status_code == 201, uploaded.text
    assert (uploaded.json()["format"], uploaded.json()["families"]) == ("springs-1", ["springs"])
    checked = ended(http, uploaded.headers["location"])
    assert (checked["state"], checked["rows"], checked["tasks"]) == ("ready", 200, 20)

    spec = {
        "family": {"kind": "springs", "dataset": checked["id"]},
        "model": {"hidden": [8]},
        "trajectory": {"length": 0.5},
        "solver": {"kind": "euler", "step": 0.1},
        "meta": {"iterations": 5, "tasks_per_batch": 4},
        "evaluation": {"tasks": 5, "epochs": 5},
    }
    estimate = http.post("/v1/jobs", params={"dry_run": "true"}, json=spec).json()["estimate"]
    assert estimate["parameters"] == 25
    assert estimate["seconds"] is not None

    job = http.post("/v1/jobs", json=spec)
    assert job.status_code == 201, job.text
    trained = ended(http, job.headers["location"])
    assert trained["state"] == "succeeded", trained["status_detail"]

    file = tmp_path / "initialization"
    file.write_bytes(http.get(f"/v1/jobs/{trained['id']}/initialization").content)
    command = [sys.executable, "-c", LOADS, str(file)]
    loaded = subprocess.run(command, env=os.environ | WITH_IT, capture_output=True, text=True, check=False)
    assert loaded.stdout == "springs SpringsSpec ['time']\n", loaded.stderr

    rows = {"support": {"x": [[0.0], [1.0], [2.0]], "y": [0.0, 0.4, 0.8]}, "query": {"x": [[3.0]]}}
    adapted = http.post(f"/v1/jobs/{trained['id']}/adaptations", json=rows, headers={"Prefer": "wait=60"})
    assert adapted.status_code == 201, adapted.text
    assert math.isfinite(adapted.json()["result"]["predictions"][0][0])
    early = {**rows, "query": {"x": [[-1.0]]}}
    refused = check_problem(http.post(f"/v1/jobs/{trained['id']}/adaptations", json=early), 422, "invalid")
    assert refused["errors"] == [{"pointer": "/query/x/0", "detail": "-1 is before 0"}]


def test_its_reader_says_what_is_wrong_with_a_file(http: httpx.Client) -> None:
    uploaded = http.post("/v1/datasets", content=measured() + b"s1 now here\n", params={"format": "springs-1"})
    assert uploaded.status_code == 201, uploaded.text
    checked = ended(http, uploaded.headers["location"])
    assert checked["state"] == "invalid"
    assert checked["status_detail"].startswith("Line 202: expected a name")


def test_data_that_it_does_not_read_are_refused(http: httpx.Client) -> None:
    table = http.post("/v1/datasets", content=b"a,b\n1,2\n").json()
    answer = http.post("/v1/jobs", json={"family": {"kind": "springs", "dataset": table["id"]}})
    [error] = check_problem(answer, 422, "invalid")["errors"]
    assert error["pointer"] == "/family/dataset"
    assert "springs reads files that begin with 'springs, version 1'" in error["detail"]
