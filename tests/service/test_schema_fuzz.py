"""Thousands of requests that schemathesis makes from our own OpenAPI document, good ones and bad ones, alone and in chains."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from service.core.database import transaction
from service.workers import store as workers
from tests.support.api import Tenant, serving, worker_seen


@pytest.mark.parametrize(
    ("examples", "least"),
    [(15, 3_000), pytest.param(60, 5_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3_000)])],
)
def test_every_answer_is_as_documented(
    service_database: str, tenant: Tenant, tmp_path: Path, examples: int, least: int
) -> None:
    """So many examples an operation, and at least so many requests in all."""
    with serving(service_database, tmp_path / "log") as api, a_worker():
        report = tmp_path / "report.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {tenant.key}"),
                *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(examples), "--seed", "1"),
                # A spec may fit the schema field by field and yet contradict itself: that is a 422, and rightly.
                *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
                *("--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure"),
                *("--report", "json", "--report-json-path", str(report), "--request-timeout", "90"),
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-20_000:]
    assert cases(report) >= least


@contextmanager
def a_worker() -> Iterator[None]:
    """Somebody who is seen again and again: without a worker, /readyz answers 503."""
    worker_id, stopping = worker_seen(), Event()

    def be_seen() -> None:
        while not stopping.wait(2.0):
            with transaction() as session:
                workers.seen(session, worker_id, "here", 1, ["cpu"])

    thread = Thread(target=be_seen)
    thread.start()
    yield
    stopping.set()
    thread.join()


def cases(report: Path) -> int:
    return int(json.loads(report.read_text())["test_cases"]["generated"])
