"""Bodies that are wrong: each is refused with a problem that says where and why, and none of them is a 500."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.http.examples import DATASET_ID
from tests.support.api import JSON, SPEC, Api, Tenant, check_problem
from tests.support.waiting import CEILING_SECONDS

DEEP = b'{"family": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"nonsense": 1}, "/nonsense", "no such field"),
        ({"family": {"kind": "images", "dataset": "letters"}}, "/family/dataset", "names no data set: give digits"),
        ({"family": {"kind": "images", "dataset": "digits", "ways": 5, "test_classes": 3}}, "/family/test_classes", "5 ways"),
        (
            {"family": {"kind": "table", "dataset": str(DATASET_ID), "task": "a", "inputs": ["b"], "targets": ["a"]}},
            "/family/targets",
            "a column has one role",
        ),
        ({"family": {"kind": "poisson"}, "model": {"activation": "relu"}}, "/model/activation", "set model.activation to tanh"),
        ({"model": {"kind": "conv4"}}, "/model/kind", "conv4 reads pictures"),
        ({"family": None}, "/family", ""),
        ({"family": {}}, "/family/kind", "required"),
        ({"family": {"kind": "nonesuch"}}, "/family/kind", "sinusoid"),
        ({"family": {"kind": "cosmixture", "dim": -1}}, "/family/dim", "-1 is too small: it must be at least 1"),
        ({"family": {"kind": "cosmixture", "extra": 1}}, "/family/extra", "no such field"),
        ({"family": {"kind": "ratings"}}, "/family/dataset", "required"),
        ({"family": {"kind": "ratings", "dataset": "x"}}, "/family/dataset", "UUID"),
        ({"family": {"kind": "sinusoid", "shots": "1"}}, "/family/shots", "'1'"),
        ({"family": {"kind": "sinusoid", "shots": 1.0}}, "/family/shots", "1.0"),
        ({"family": {"kind": "sinusoid", "shots": True}}, "/family/shots", "true"),
        ({"trajectory": {"length": -2}}, "/trajectory/length", "-2 is too small: it must be greater than 0"),
        ({"meta": {"iterations": 10**9}}, "/meta/iterations", "1000000000 is too large: it must be at most 1000000"),
        ({"meta": {"iterations": 10**400}}, "/meta/iterations", "too large"),
        ({"runtime": {"seed": 2**63}}, "/runtime/seed", "too large"),
        ({"meta": {"optimizer": {"lr": 0}}}, "/meta/optimizer/lr", "greater than 0"),
        ({"meta": {"clip": {"at": -1}}}, "/meta/clip/at", "greater than 0"),
        ({"meta": {"clip": {"at": "mean"}}}, "/meta/clip/at", "choose 'median'"),
        ({"meta": {"phases": [{"method": {"kind": "reptile"}, "share": 2}]}}, "/meta/phases/0/share", "at most 1"),
        ({"method": {"kind": "amaml", "adjoint": {"kind": "x"}}}, "/method/adjoint/kind", "discrete"),
        ({"method": {"adjoint": {"kind": "discrete", "checkpoints": 0}}}, "/method/adjoint/checkpoints", "at least 1"),
        ({"model": {"hidden": [8, 0]}}, "/model/hidden/1", "at least 1"),
        ({"model": {"hidden": []}}, "/model/hidden", "at least 1"),
        ({"tags": {"a/b~c": 1}}, "/tags/a~1b~0c", "string"),
        ({"tags": {"": "x"}}, "/tags/", ""),
        ({"name": "x" * 201}, "/name", "200"),
        ({"name": "a\x00b"}, "/name", "NUL"),
        ({"tags": {"a\x00": "b"}}, "/tags", "NUL"),
        ({"solver": {"kind": "dopri5", "step": 0.1}}, "/solver/step", "set step to null"),
        ({"solver": {"kind": "dopri5", "rtol": 1e-9}}, "/solver/rtol", "float64"),
        ({"solver": {"kind": "dopri8"}, "method": {"adjoint": {"kind": "interpolated"}}}, "/method/adjoint", "discrete"),
        ({"trajectory": {"schedule": [[5, 1.0], [5, 2.0]]}}, "/trajectory/schedule", "increase"),
        ({"trajectory": {"schedule": [[0, 1.0]], "horizons": [{"at": 1.0}]}}, "/trajectory/horizons", "exclude"),
    ],
)  # fmt: skip
def test_each_error_points_at_its_field(http: httpx.Client, change: dict[str, Any], pointer: str, words: str) -> None:
    answer = http.post("/v1/jobs", content=json.dumps({**SPEC, **change}), headers=JSON)
    errors = check_problem(answer, 422, "invalid")["errors"]
    assert pointer in [error["pointer"] for error in errors]
    assert words in next(error["detail"] for error in errors if error["pointer"] == pointer)


def test_all_errors_come_at_once(http: httpx.Client) -> None:
    body = {"family": {"kind": "sinusoid", "shots": 0}, "meta": {"iterations": 0}, "x": 1}
    errors = check_problem(http.post("/v1/jobs", json=body), 422, "invalid")["errors"]
    assert {error["pointer"] for error in errors} == {"/family/shots", "/meta/iterations", "/x"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nonsense", b"{'a': 1}", b'{"a": 1,}', b'{"a": 01}', b'{"a": +1}', b"\xff\xfe{}", b'{"a": "\xff"}',
        b'{"a": "\x01"}', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": ' + b"9" * 5_000 + b"}",
        b'{"a": 1, "a": 2}', DEEP, b"[" * 900_000, b'{"a":' * 150_000, b'{"a": "\\x"}', b'\xef\xbb\xbf{"a": 1}',
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_no_json_is_a_400(http: httpx.Client, body: bytes) -> None:
    check_problem(http.post("/v1/jobs", content=body, headers=JSON), 400, "broken_json")


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b"[{}]",
        b"1e400",
        b'"\\ud800"',
        b'{"name": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'"\\u0000"',
    ],
)
def test_json_that_is_no_spec_is_a_422(http: httpx.Client, body: bytes) -> None:
    check_problem(http.post("/v1/jobs", content=body, headers=JSON), 422, "invalid")


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_media_type_is_a_415(http: httpx.Client, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = http.post("/v1/jobs", content=json.dumps(SPEC).encode(), headers=headers)
    check_problem(answer, 415, "wrong_media_type")


def test_compressed_bodies_are_a_415(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", content=b"\x1f\x8b", headers={**JSON, "Content-Encoding": "gzip"})
    check_problem(answer, 415, "wrong_media_type")


def test_a_charset_or_a_json_suffix_is_fine(http: httpx.Client) -> None:
    for media_type in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"):
        answer = http.post("/v1/jobs", content=json.dumps(SPEC).encode(), headers={"Content-Type": media_type})
        assert answer.status_code == 201


class TestSize:
    def test_a_body_of_100_mb_is_a_413_and_takes_no_memory(self, http: httpx.Client, api: Api) -> None:
        def body() -> Iterator[bytes]:
            for _ in range(100):
                yield b" " * 1_000_000

        before = _resident_bytes(api.pid)
        announced = http.post("/v1/jobs", content=b" " * 100_000_000, headers=JSON)
        check_problem(announced, 413, "too_large")
        check_problem(http.post("/v1/jobs", content=body(), headers=JSON), 413, "too_large")
        assert _resident_bytes(api.pid) - before < 20_000_000
        assert http.post("/v1/jobs", json=SPEC).status_code == 201

    def test_without_a_key_a_large_body_is_a_401(self, anyone: httpx.Client) -> None:
        answer = anyone.post("/v1/jobs", content=b" " * 30_000_000, headers=JSON)
        check_problem(answer, 401, "unauthenticated")

    def test_an_announced_10_gb_is_refused_before_it_comes(self, api: Api, tenant: Tenant) -> None:
        for path in ("jobs", "datasets"):
            head = _request(api, tenant, path, "Content-Length: 10000000000", b"{")
            assert head.startswith("HTTP/1.1 413 ")

    @pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "1" * 30])
    def test_lengths_that_are_none_are_refused(self, api: Api, tenant: Tenant, length: str) -> None:
        head = _request(api, tenant, "jobs", f"Content-Length: {length}", b"{}")
        assert head.startswith(("HTTP/1.1 400 ", "HTTP/1.1 413 "))


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    ["name", "tags", "family", "model", "method", "trajectory", "solver", "meta", "evaluation", "runtime", "x"]
)
near_specs = st.builds(
    lambda family, rest: {**rest, "family": family},
    st.builds(lambda kind, rest: {**rest, "kind": kind}, st.sampled_from(["sinusoid", "ratings", "alpine"]),
              st.dictionaries(st.sampled_from(["shots", "dim", "dataset", "items"]), garbage, max_size=2)),
    st.dictionaries(fields, garbage | st.dictionaries(st.sampled_from(["kind", "length", "step"]), garbage), max_size=3),
)  # fmt: skip


class TestFuzz:
    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(body=near_specs | garbage)
    def test_json_of_any_kind_is_never_a_500(self, http: httpx.Client, body: object) -> None:
        answer = http.post("/v1/jobs", content=json.dumps(body).encode(), headers=JSON)
        assert answer.status_code in (201, 400, 422), answer.text
        if answer.status_code != 201:
            check_problem(answer, answer.status_code, answer.json()["code"])

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(body=st.binary(max_size=200))
    def test_bytes_of_any_kind_are_never_a_500(self, http: httpx.Client, body: bytes) -> None:
        assert http.post("/v1/jobs", content=body, headers=JSON).status_code in (400, 422)
        assert http.post("/v1/datasets", content=body).status_code in (201, 422)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(value=st.text(max_size=30))
    def test_parameters_of_any_kind_are_never_a_500(self, http: httpx.Client, value: str) -> None:
        text = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        for name in ("state", "family", "method", "tag", "limit", "cursor"):
            assert http.get("/v1/jobs", params={name: text}).status_code in (200, 422)


def _request(api: Api, tenant: Tenant, path: str, header: str, body: bytes) -> str:
    """The head of the answer to a request that no proper client would send."""
    host, port = api.url.removeprefix("http://").split(":")
    lines = [f"POST /v1/{path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {tenant.key}", header]
    with socket.create_connection((host, int(port)), timeout=CEILING_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + body)
        return connection.recv(65536).decode()


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])
