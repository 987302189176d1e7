"""The API's throughput, compared with a minimal service and with MLflow's tracking server.

    make bench-api

Each has its own process, and its own database on one durable PostgreSQL; 16 connections; rounds in turn. Then 2,000 idle event
streams on one API process, its memory and its time to start.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import psycopg

from benchmarks.load import request, round_of
from benchmarks.record import Run, arguments
from launcher import postgres
from launcher.log import Log
from launcher.ports import free_port

CONNECTIONS, ROUNDS, SECONDS = 16, 5, 6.0
STREAMS = 2_000
SPEC = {"name": "bench", "family": {"kind": "sinusoid"}, "trajectory": {"length": 0.5}, "meta": {"iterations": 200}}
FLOOR_KEY = "floor-key"
JSON = {"Content-Type": "application/json"}
ROOT = Path(__file__).parents[1]
MLFLOW = Path(__file__).parent / ".venv-mlflow" / "bin" / "mlflow"


class Server:
    """A server process on its own port."""

    def __init__(self, command: Callable[[int], list[str]], environment: dict[str, str], ready: str, log: Path) -> None:
        self.port = free_port()
        begin = time.perf_counter()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command(self.port), env={**os.environ, **environment}, stdout=stream, stderr=stream, cwd=ROOT
            )
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{ready}", timeout=5).close()
            except OSError as error:
                if self.process.poll() is not None or time.perf_counter() - begin > 120:
                    raise RuntimeError(f"{command(self.port)} doesn't answer:\n{log.read_text()}") from error
                time.sleep(0.01)
            else:
                break
        self.start_seconds = time.perf_counter() - begin

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def call(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
        content = json.dumps(body).encode() if body is not None else None
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", content, {**JSON, **headers}, method=method
        )
        with urllib.request.urlopen(asked, timeout=30) as got:  # noqa: S310 - the same
            return json.loads(got.read()), got.headers

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def stores(folder: Path) -> Iterator[Callable[[str], str]]:
    """A durable PostgreSQL; called with a name, it creates a database and returns its URL."""
    with (folder / "postgres.log").open("w") as stream:
        server, url = postgres.start(folder / "postgres", "bench", Log(stream), Event())

    def database(name: str) -> str:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        head, _, tail = url.rpartition("/")
        return f"{head}/{name}{'?' + tail.partition('?')[2] if '?' in tail else ''}"

    try:
        yield database
    finally:
        server.stop()


def uvicorn(app: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--http", "h11", "--no-access-log"]


def ours(folder: Path, url: str) -> tuple[Server, str]:
    """The API on a fresh database, and its admin key."""
    environment = {
        "AMAML_DATABASE_URL": url,
        "AMAML_HOME": str(folder / "home"),
        # All requests have the same key, and the submitted jobs are never run.
        "AMAML_RATE_LIMIT": "0",
        "AMAML_QUOTA_QUEUED_JOBS": "1000000",
        "AMAML_QUOTA_COMPUTE_SECONDS": "1000000000",
    }
    (folder / "home").mkdir()
    for command in (["alembic", "-c", "migrations/alembic.ini", "upgrade", "head"], ["service.admin", "bootstrap"]):
        subprocess.run([sys.executable, "-m", *command], env={**os.environ, **environment}, check=True, cwd=ROOT,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    server = Server(uvicorn("service.api.app:app"), environment, "/healthz", folder / "api.log")
    return server, (folder / "home" / "admin.key").read_text().strip()


def floor(folder: Path, url: str) -> Server:
    environment = {"AMAML_DATABASE_URL": url, "FLOOR_KEY": FLOOR_KEY}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.api_floor"], env={**os.environ, **environment}, check=True, cwd=ROOT
    )
    return Server(uvicorn("benchmarks.api_floor:app"), environment, "/healthz", folder / "floor.log")


def mlflow(folder: Path, url: str) -> Server:
    def command(port: int) -> list[str]:
        return [str(MLFLOW), "server", "--backend-store-uri", url.replace("+psycopg", "+psycopg2"), "--workers", "1",
                "--default-artifact-root", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip

    environment = {"PATH": f"{MLFLOW.parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Server(command, environment, "/health", folder / "mlflow.log")


def cases(folder: Path, database: Callable[[str], str], stack: ExitStack) -> dict[str, tuple[Server, bytes]]:
    """The cases by name: the server and the request."""
    bare = floor(folder, database("floor"))
    stack.callback(bare.stop)
    api, key = ours(folder, database("api"))
    stack.callback(api.stop)
    peer = mlflow(folder, database("mlflow"))
    stack.callback(peer.stop)

    bare_key = {"Authorization": f"Bearer {FLOOR_KEY}"}
    own_key = {"Authorization": f"Bearer {key}"}
    body = json.dumps(SPEC).encode()
    bare_job = bare.call("POST", "/v1/jobs", bare_key, SPEC)[0]["id"]
    own_job = api.call("POST", "/v1/jobs", own_key, SPEC)[0]["id"]
    etag = api.call("GET", f"/v1/jobs/{own_job}", own_key)[1]["ETag"]
    run = {"experiment_id": "0", "run_name": "bench", "tags": [{"key": "spec", "value": json.dumps(SPEC)}]}
    run_id = peer.call("POST", "/api/2.0/mlflow/runs/create", {}, run)[0]["run"]["info"]["run_id"]
    return {
        "submit, floor": (bare, request("POST", "/v1/jobs", JSON | bare_key, body)),
        "submit": (api, request("POST", "/v1/jobs", JSON | own_key, body)),
        "submit, MLflow's create run": (
            peer,
            request("POST", "/api/2.0/mlflow/runs/create", JSON, json.dumps(run).encode()),
        ),
        "poll, floor": (bare, request("GET", f"/v1/jobs/{bare_job}", bare_key)),
        "poll": (api, request("GET", f"/v1/jobs/{own_job}", own_key)),
        "poll, 304": (api, request("GET", f"/v1/jobs/{own_job}", own_key | {"If-None-Match": etag})),
        "poll, MLflow's get run": (peer, request("GET", f"/api/2.0/mlflow/runs/get?run_id={run_id}", {})),
    }


def throughput(run: Run, asked: dict[str, tuple[Server, bytes]]) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    seconds = 0.3 if run.quick else SECONDS
    for _ in range(1 if run.quick else ROUNDS + 1):
        for name, (server, sent) in asked.items():
            rounds[name].append(round_of(server.port, sent, connections=CONNECTIONS, seconds=seconds).summary())
    found = {}
    for name, all_of_it in rounds.items():
        good = all_of_it[1:] or all_of_it  # the first round warms up
        strange = {status for one in good for status in one["statuses"]} - {200, 201, 304}
        assert not strange, f"{name} was answered {strange}"
        found[name] = {
            what: statistics.median(one[what] for one in good) for what in ("per_second", "p50_ms", "p99_ms")
        } | {"rounds": good}
    return found


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    def rate(name: str) -> float:
        return float(rows[name]["per_second"])

    return {
        "submit / floor": rate("submit") / rate("submit, floor"),
        "submit / MLflow": rate("submit") / rate("submit, MLflow's create run"),
        "submit p99 / floor's": rows["submit"]["p99_ms"] / rows["submit, floor"]["p99_ms"],
        "poll / floor": rate("poll") / rate("poll, floor"),
        "poll / MLflow": rate("poll") / rate("poll, MLflow's get run"),
        "poll p99 / floor's": rows["poll"]["p99_ms"] / rows["poll, floor"]["p99_ms"],
        "304 / poll": rate("poll, 304") / rate("poll"),
    }


async def _hold(port: int, sent: bytes, count: int, during: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `during` while `count` event streams are open."""
    held = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        held.append((reader, writer))
    for reader, _ in held:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 200"), head
    await asyncio.sleep(2)
    found = await asyncio.to_thread(during)
    for _, writer in held:
        writer.close()
    return found


def streams(run: Run, folder: Path, url: str) -> dict[str, Any]:
    """A fresh API process: its start, its idle memory, and the cost of idle event streams."""
    api, key = ours(folder, url)
    try:
        own_key = {"Authorization": f"Bearer {key}"}
        job = api.call("POST", "/v1/jobs", own_key, SPEC)[0]["id"]
        health = request("GET", "/healthz", {})

        def measure() -> dict[str, Any]:
            load = round_of(api.port, health, connections=1, seconds=0.3 if run.quick else 5.0).summary()
            return {
                "resident_mb": api.resident_mb(),
                "healthz_p99_ms": load["p99_ms"],
                "healthz_p50_ms": load["p50_ms"],
            }

        alone = measure()
        count = 20 if run.quick else STREAMS
        events = request("GET", f"/v1/jobs/{job}/events", own_key | {"Accept": "text/event-stream"})
        with_streams = asyncio.run(_hold(api.port, events, count, measure))
        return {
            "streams": count,
            "start_seconds": api.start_seconds,
            "alone": alone,
            "with_streams": with_streams,
            "kib_a_stream": 1024 * (with_streams["resident_mb"] - alone["resident_mb"]) / count,
            "healthz_p99_ratio": with_streams["healthz_p99_ms"] / alone["healthz_p99_ms"],
        }
    finally:
        api.stop()


def main(run: Run) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user if this one is root
        database = stack.enter_context(stores(folder))
        (folder / "streams").mkdir()
        idle = streams(run, folder / "streams", database("streams"))
        rows = throughput(run, cases(folder, database, stack))
    found = {"rows": rows, "ratios": ratios(rows), "streams": idle}
    run.write(found)
    print(json.dumps({"ratios": found["ratios"], "streams": idle}, indent=1))
    for what, row in rows.items():
        print(f"{what:32} {row['per_second']:7.0f}/s  p50 {row['p50_ms']:6.1f} ms  p99 {row['p99_ms']:6.1f} ms")


if __name__ == "__main__":
    main(arguments("api"))
