"""The API as a real process, tenants of it, and what a client asks of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx2 as httpx

from launcher.ports import HOST, free_port
from service.core.database import transaction
from service.keys import store as keys
from service.workers import store as workers
from tests.support.waiting import CEILING_SECONDS, wait_until

SPEC: dict[str, Any] = {"family": {"kind": "sinusoid"}, "meta": {"iterations": 3}}
JSON = {"Content-Type": "application/json"}


@dataclass
class Api:
    """An API process, which can be killed and started again at the same address."""

    environment: dict[str, str]
    log: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Starts it as the launcher does, and returns once it answers."""
        arguments = ["--host", HOST, "--port", str(self.port), "--http", "h11", "--no-access-log"]
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "service.main:app", *arguments, "--timeout-graceful-shutdown", "2"],
                env=self.environment, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            wait_until(self._answers)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        self._process.terminate()
        try:
            self.wait()
        finally:
            self.kill()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait(CEILING_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", timeout=10, verify=False).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def serving(database: str, log: Path, **settings: str) -> Iterator[Api]:
    """The API on a database, with these settings of the environment, as long as the block runs."""
    api = Api({**os.environ, "AMAML_DATABASE_URL": database, **settings}, log, free_port())
    api.start()
    try:
        yield api
    finally:
        api.stop()


class Tenant(NamedTuple):
    workspace_id: UUID
    key: str


def new_tenant() -> Tenant:
    with transaction() as session:
        workspace_id = keys.ensure_workspace(session, f"test-{uuid4()}")
        _, key = keys.add(session, workspace_id, "test")
    return Tenant(workspace_id, key)


def client(api: Api, tenant: Tenant) -> httpx.Client:
    """A client with the tenant's key."""
    headers = {"Authorization": f"Bearer {tenant.key}"}
    return httpx.Client(base_url=api.url, headers=headers, timeout=CEILING_SECONDS, verify=False)


def submit(http: httpx.Client, **changes: Any) -> str:
    """The id of a new job: SPEC with these parts in the place of its own."""
    answer = http.post("/v1/jobs", json={**SPEC, **changes})
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def worker_seen() -> UUID:
    """Somebody tells the store that a worker with this id lives."""
    worker_id = uuid4()
    with transaction() as session:
        workers.seen(session, worker_id, "here", 1, ["cpu"])
    return worker_id


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is that problem, whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:amaml:problem:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    return document
