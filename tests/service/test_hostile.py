"""Inputs that mean harm, all of them against one API: each is refused with a problem, none takes its memory or its life."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.core.database import transaction
from service.datasets.tables import Dataset
from tests.support.api import JSON, SPEC, client, new_tenant, serving
from tests.support.waiting import CEILING_SECONDS
from worker.datasets.checks import DatasetChecks
from worker.settings import WorkerSettings

MOST_MEMORY: Final = 300 * 1024 * 1024
NO_SUCH: Final = "01890000-0000-7000-8000-000000000000"


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


JSON_BODIES: Final[dict[str, bytes]] = {
    "500,000 open brackets": b"[" * 500_000,
    "100,000 objects in each other": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100 levels of both": text(nested(100)),
    "an integer of 100,000 digits": b'{"family": {"kind": "sinusoid", "shots": ' + b"9" * 100_000 + b"}}",
    "1e999999999": b'{"family": {"kind": "sinusoid"}, "trajectory": {"length": 1e999999999}}',
    "NaN": b'{"family": {"kind": "sinusoid"}, "trajectory": {"length": NaN}}',
    "-Infinity": b'{"family": {"kind": "sinusoid"}, "trajectory": {"length": -Infinity}}',
    "one field twice": b'{"family": {"kind": "sinusoid"}, "family": {"kind": "alpine"}}',
    "50,000 unknown fields": text({**SPEC, **{f"x{k}": k for k in range(50_000)}}),
    "a field's name of 900 KB": text({**SPEC, "x" * 900_000: 1}),
    "a name of 900 KB": text({**SPEC, "name": "x" * 900_000}),
    "a million spaces and more": b" " * ((1 << 20) + 1),
    "bytes that are no text": b"\xff\xfe\x00\x01" * 100,
    "half a surrogate pair": b'{"name": "\\ud800", "family": {"kind": "sinusoid"}}',
    "a NUL": b'{"name": "a\\u0000b", "family": {"kind": "sinusoid"}}',
    "a schedule of 100,000 entries": text({**SPEC, "trajectory": {"schedule": [[k, 1.0] for k in range(80_000)]}}),
    "a network of 10^18 weights": text({**SPEC, "model": {"hidden": [10**9, 10**9]}}),
    "layers without end": text({**SPEC, "model": {"hidden": [8] * 100_000}}),
    "steps without end": text({**SPEC, "solver": {"kind": "euler", "step": 1e-300}}),
    "10^12 tasks a batch": text({**SPEC, "meta": {"iterations": 1, "tasks_per_batch": 10**12}}),
    "a data set of nobody": text({"family": {"kind": "ratings", "dataset": NO_SUCH}}),
    "a path for a data set": text({"family": {"kind": "ratings", "dataset": "../../../../etc/passwd"}}),
    "start from nobody's job": text({**SPEC, "meta": {"init_from": {"job": NO_SUCH}}}),
    "SQL in a kind": text({"family": {"kind": "sinusoid'; DROP TABLE jobs; --"}}),
    "tags that are a tree": text({**SPEC, "tags": nested(20)}),
    "10,000 tags": text({**SPEC, "tags": {str(k): "x" for k in range(10_000)}}),
}
STUDIES: Final[dict[str, Any]] = {
    "10^9 cells": {"base": SPEC, "grid": {f"/meta/optimizer/{k}": list(range(10)) for k in range(9)}},
    "one axis of 100,000 seeds": {"base": SPEC, "grid": {"/runtime/seed": list(range(100_000))}},
    "a pointer into Python": {"base": SPEC, "grid": {"/__class__/__init__": [1]}},
    "a pointer of 100 KB": {"base": SPEC, "grid": {"/a" * 50_000: [1]}},
    "an empty axis": {"base": SPEC, "grid": {"/runtime/seed": []}},
}
URLS: Final[tuple[str, ...]] = (
    "http://example.org/", "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0177.0.0.1/", "https://0x7f.0.0.0x1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
    "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://localhost/", "https://localhost./", "https://0.0.0.0/",
    "https://0/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/", "https://[fe80::1%25eth0]/", "https://224.0.0.1/",
    "https://255.255.255.255/", "https://user:secret@example.org/", "https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/",
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "https://", "//127.0.0.1/", "https://example.org:22/\r\nX: y",
    "https://" + "a" * 5_000 + ".org/", "javascript:alert(1)", "https://[::", "https://exa mple.org/",
)  # fmt: skip


def archives() -> dict[str, bytes]:
    """Files that unpack to far more than they are, or run code when they are read."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("read",)

    zipped, tarred, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.csv", b"0" * 50_000_000)
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        entry = tarfile.TarInfo("../../etc/passwd")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"x:y"))
    np.savez(arrays, x=np.array([Evil()], dtype=object))
    return {
        "a zip bomb": zipped.getvalue(),
        "a tar with a path out of it": tarred.getvalue(),
        "50 MB of zeros by gzip": gzip.compress(b"0" * 50_000_000),
        "a pickle": pickle.dumps(Evil()),
        "npz with objects": arrays.getvalue(),
        "an ELF program": b"\x7fELF" + b"\0" * 200,
        "nothing": b"",
        "a NUL": b"\0",
    }


def parquet(rows: int) -> bytes:
    out = io.BytesIO()
    zeros = pa.array(np.zeros(rows))
    pq.write_table(pa.table({"task": zeros, "x": zeros, "y": zeros}), out, compression="zstd")
    return out.getvalue()


def safetensors(header: bytes, announced: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if announced is None else announced) + header + data


def tables() -> dict[str, bytes]:
    """What has the head of a good file, and isn't one: the API may take it in, a worker finds out."""
    whole = parquet(1_000)
    one = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    two = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    labels = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    return {
        "CSV of a million columns": b",".join(b"c%d" % k for k in range(1_000_000)) + b"\n1\n",
        "CSV with one line of 20 MB": b"task,x,y\n1," + b"9" * 20_000_000 + b",1\n",
        "CSV with one open quote": b'task,x,y\n1,"' + b"2,3\n" * 200_000,
        "CSV that stops amid a character": "task,x,y\n1,2,é".encode()[:-1],
        "CSV with a NUL in it": b"task,x,y\n1,\0,3\n",
        "CSV with rows of all widths": b"task,x,y\n1\n1,2,3,4,5\n,,\n",
        "Parquet of 100 million zeros": parquet(100_000_000),
        "Parquet without its tail": whole[: len(whole) // 2],
        "Parquet with its footer overwritten": whole[:-200] + b"\xff" * 192 + whole[-8:],
        "safetensors with a header of 2^63": safetensors(b"{}", 2**63),
        "safetensors with a header of 90 MB announced": safetensors(b"{}", 90_000_000),
        "safetensors of four terabytes announced": safetensors(
            text({"images": one, "labels": labels}), data=b"\0" * 64
        ),
        "safetensors that overlap": safetensors(text({"images": two, "labels": two}), data=b"\0" * 16),
        "safetensors whose header is deep": safetensors(b"[" * 100_000),
        "safetensors of negative shape": safetensors(
            text({"images": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}, "labels": labels}),
            data=b"\0" * 16,
        ),
    }


POST: Final = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n"
GET: Final = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n%b"
RAW: Final[dict[str, bytes]] = {
    "a length of 10 GB": POST + b"Content-Length: 10000000000\r\n\r\n{",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
    "a length and chunks": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "a chunk size that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a header of 1 MB": GET + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "100,000 headers": GET + b"X: y\r\n" * 100_000 + b"\r\n",
    "a path of 200 KB": b"GET /v1/jobs/" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n%b\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 %b\r\n\r\n",
    "another version of HTTP": b"GET /v1/jobs HTTP/99\r\nHost: x\r\n%b\r\n",
    "bytes in the request's line": b"GET /v1/jobs\x00\xff HTTP/1.1\r\nHost: x\r\n%b\r\n",
}
A_CHUNK_OF_2_64: Final = POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{"
LOOKS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("/v1/jobs/../../etc/passwd", {}), ("/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", {}), ("/v1/jobs/%00", {}),
    (f"/v1/jobs/{NO_SUCH}%0d%0aX:%20y", {}), ("/v1/jobs/" + "9" * 3_000, {}), ("/v1/jobs?limit=1000000000", {}),
    ("/v1/jobs?limit=-1", {}), ("/v1/jobs?cursor=" + "A" * 3_000, {}), ("/v1/jobs?cursor=eyJpZCI6IDF9", {}),
    ("/v1/jobs?state=queued%27%20OR%201=1", {}), ("/v1/jobs?tag=%00", {}),
    (f"/v1/jobs/{NO_SUCH}/metrics?max_points=99999999999", {}),
    (f"/v1/jobs/{NO_SUCH}/metrics?from_step=-9223372036854775809", {}),
    (f"/v1/jobs/{NO_SUCH}/checkpoints/99999999999999999999", {}),
    (f"/v1/jobs/{NO_SUCH}/events", {"Accept": "text/event-stream", "Last-Event-ID": "9" * 500}),
    (f"/v1/jobs/{NO_SUCH}", {"If-None-Match": '"' + "x" * 8_000 + '"'}),
    (f"/v1/jobs/{NO_SUCH}/initialization", {"Range": "bytes=" + ",".join("0-" for _ in range(1_500))}),
)  # fmt: skip


class Attack:
    """One API, the peak of whose memory is kept."""

    def __init__(self, url: str, pid: int, http: httpx.Client, key: str) -> None:
        self.url, self.pid, self.http, self.key = url, pid, http, key
        self.count = 0

    def memory(self) -> int:
        """The most that the process ever held, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])

    def refused(self, what: str, answer: httpx.Response, *, taken: bool = False) -> None:
        """A problem that says something, or a 201 where a worker is the judge; the API still answers."""
        self.count += 1
        if not (taken and answer.status_code in (200, 201)):
            assert 400 <= answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
            problem = answer.json()
            assert problem["code"], what
            assert problem["detail"], what
            assert len(answer.content) < 100_000, f"{what}: an answer of {len(answer.content)} bytes"
        assert self.memory() < MOST_MEMORY, what
        assert self.http.get("/healthz").status_code == 200, what

    def raw(self, what: str, sent: bytes) -> None:
        """A request that no proper client would send: refused by whoever sees it first, or the connection is closed."""
        self.count += 1
        sent = sent.replace(b"%b", f"Authorization: Bearer {self.key}\r\n".encode(), 1)
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=CEILING_SECONDS) as connection:
            try:
                connection.sendall(sent)
                head = connection.recv(65536)
            except ConnectionError:
                head = b""
            except TimeoutError:
                raise AssertionError(f"{what}: no answer") from None
        assert head == b"" or head.startswith(b"HTTP/1.1 4"), f"{what}: {head[:200]!r}"
        assert self.memory() < MOST_MEMORY, what
        assert self.http.get("/healthz").status_code == 200, what


@pytest.fixture(scope="module")
def attack(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMAML_DATABASE_URL", service_database)
        tenant = new_tenant()
    with serving(service_database, tmp_path_factory.mktemp("hostile") / "log") as api, client(api, tenant) as http:
        yield Attack(api.url, api.pid, http, tenant.key)


def test_json(attack: Attack) -> None:
    for what, body in JSON_BODIES.items():
        attack.refused(what, attack.http.post("/v1/jobs", content=body, headers=JSON))
    for what, study in STUDIES.items():
        attack.refused(what, attack.http.post("/v1/studies", json={"name": "x", **study}))
    bomb = gzip.compress(b" " * 50_000_000)
    attack.refused("gzip", attack.http.post("/v1/jobs", content=bomb, headers={**JSON, "Content-Encoding": "gzip"}))
    assert attack.count >= 30


def test_headers(attack: Attack) -> None:
    wrong = {
        "Idempotency-Key": ["x" * 5_000, "", "\x7f"],
        "Prefer": ["wait=1e9", "wait=-1", "wait=99999999999999999999"],
    }
    for name, values in wrong.items():
        for value in values:
            answer = attack.http.post("/v1/jobs", json={"family": {"kind": "none"}}, headers={name: value})
            attack.refused(f"{name}: {value[:20]}", answer)
    for key in ("Bearer", "Bearer " + "a" * 5_000, "Basic x", "Bearer amaml_" + "0" * 72, "\x7f"):
        attack.refused(key[:30], attack.http.get("/v1/jobs", headers={"Authorization": key}))
    for path, headers in LOOKS:
        attack.refused(path[:60], attack.http.get(path, headers=headers))


def test_requests_that_no_client_sends(attack: Attack) -> None:
    for what, sent in RAW.items():
        attack.raw(what, sent)


@pytest.mark.nightly  # the API waits half a minute for the rest of a body
def test_a_chunk_that_never_ends(attack: Attack) -> None:
    attack.raw("a chunk of 2^64", A_CHUNK_OF_2_64)


def test_a_hundred_slow_bodies_keep_nobody_waiting(attack: Attack) -> None:
    host, port = attack.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {attack.key}\r\nContent-Type: application/json\r\n"
    )
    slow = [socket.create_connection((host, int(port)), timeout=CEILING_SECONDS) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(head.encode() + b"Content-Length: 500000\r\n\r\n{")
        assert attack.http.post("/v1/jobs", json=SPEC).status_code == 201
        assert attack.memory() < MOST_MEMORY
    finally:
        for connection in slow:
            connection.close()


def test_addresses_for_webhooks(attack: Attack) -> None:
    for url in URLS:
        attack.refused(url[:80], attack.http.post("/v1/webhooks", json={"url": url}))


@pytest.mark.usefixtures("store")
def test_files(attack: Attack, tmp_path: Path) -> None:
    for what, content in archives().items():
        attack.refused(what, attack.http.post("/v1/datasets", content=content))
    digest = {"Content-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"}
    attack.refused("another's digest", attack.http.post("/v1/datasets", content=b"task,x,y\n1,2,3\n", headers=digest))
    attack.refused(
        "no digest", attack.http.post("/v1/datasets", content=b"a,b\n1,2\n", headers={"Content-Digest": "x"})
    )
    stored = {}
    for what, content in tables().items():
        answer = attack.http.post("/v1/datasets", content=content)
        attack.refused(what, answer, taken=True)
        if answer.status_code == 201:
            stored[what] = answer.json()["id"]
    DatasetChecks(WorkerSettings(broker_url="redis://none"), tmp_path, threading.Event()).step()
    for what, dataset_id in stored.items():
        found = attack.http.get(f"/v1/datasets/{dataset_id}").json()
        harmless = what == "Parquet of 100 million zeros"  # No more than a long table, if it is within the bounds.
        assert found["state"] == "invalid" or (harmless and found["state"] == "ready"), f"{what}: {found}"
        assert found["status_detail"] or harmless, what
    with transaction() as session:
        assert session.query(Dataset).filter(Dataset.state == "pending").count() == 0


def test_it_goes_on(attack: Attack) -> None:
    assert attack.http.post("/v1/jobs", json=SPEC).status_code == 201
    assert attack.memory() < MOST_MEMORY
