"""Who may do what: every route is closed but those that are named public, and workspaces don't see each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2 as httpx
import pytest

from service.api.app import PUBLIC, app
from service.store import keys
from service.store.database import transaction
from service.store.tables import ApiKey
from tests.service.conftest import Api, Tenant, check_problem, client, eventually, new_tenant, start, submit, succeed

CSV = b"user,item,rating\n1,10,4.0\n1,11,2.5\n"


def _routes() -> list[tuple[str, str]]:
    found = [(method, path) for path, operations in app.openapi()["paths"].items() for method in operations]
    assert len(found) >= 30
    return [(method.upper(), path) for method, path in found]


def _walk(routes: list[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _walk(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods)


def test_the_reference_has_every_route() -> None:
    found = set(_walk(app.routes))
    assert ("POST", "/v1/jobs") in found
    assert {(method, path) for method, path in found if path not in PUBLIC} <= set(_routes())


@pytest.mark.parametrize(("method", "path"), _routes())
def test_only_public_routes_answer_without_a_key(api: Api, method: str, path: str) -> None:
    answer = httpx.request(method, api.url + re.sub(r"\{\w+\}", "01a2054d-a188-75bf-b336-be8cb1ebcb98", path))
    if path in PUBLIC:
        assert answer.status_code in (200, 503)
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    if method != "HEAD":
        check_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_reference_is_public(api: Api, path: str) -> None:
    assert httpx.get(api.url + path).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer x",
        "Bearer amaml_",
        "Bearer amaml_" + "0" * 72,
        "Bearer é",
        "amaml_x",
    ],
)
def test_what_is_no_key_is_refused(api: Api, header: str) -> None:
    headers = {"Authorization": header.strip().encode("latin-1")}
    check_problem(httpx.get(f"{api.url}/v1/jobs", headers=headers), 401, "unauthenticated")


def test_a_key_is_stored_hashed_and_its_typing_errors_are_seen(tenant: Tenant) -> None:
    assert keys.is_well_formed(tenant.key)
    flipped = tenant.key[:20] + ("0" if tenant.key[20] != "0" else "1") + tenant.key[21:]
    assert not keys.is_well_formed(flipped)
    with transaction() as session:
        for column in ("key_hash", "prefix", "name"):
            assert tenant.key not in {getattr(row, column) for row in session.query(ApiKey)}


def test_other_workspaces_things_are_not_there(http: httpx.Client, api: Api) -> None:
    job = submit(http)
    start(job)
    succeed(job, b"theta")
    dataset = http.post("/v1/datasets", content=CSV).json()["id"]
    key = http.post("/v1/api-keys", json={"name": "mine"}).json()["id"]
    unknown = "01a2054d-a188-75bf-b336-be8cb1ebcb98"
    with client(api, new_tenant()) as other:
        for collection in ("jobs", "datasets", "api-keys"):
            listed = other.get(f"/v1/{collection}").json()["data"]
            assert not {item["id"] for item in listed} & {job, dataset, key}
        for method, path in _routes():
            if "{" not in path:
                continue
            own = {"job_id": job, "dataset_id": dataset, "key_id": key, "step": "1"}
            theirs = other.request(method, path.format(**own))
            nobodys = other.request(method, path.format(**dict.fromkeys(own, unknown) | {"step": "1"}))
            assert theirs.status_code == nobodys.status_code == 404, (method, path)
            if method != "HEAD":
                without_id = [{**answer.json(), "request_id": ""} for answer in (theirs, nobodys)]
                assert without_id[0] == without_id[1]
    assert http.get(f"/v1/jobs/{job}").status_code == 200


class TestKeys:
    def test_a_new_key_is_shown_once_and_works(self, http: httpx.Client, api: Api, tenant: Tenant) -> None:
        answer = http.post("/v1/api-keys", json={"name": "notebook"})
        created = answer.json()
        assert (answer.status_code, created["name"], answer.headers["cache-control"]) == (201, "notebook", "no-store")
        assert created["key"].startswith(created["prefix"])
        with client(api, Tenant(tenant.workspace_id, created["key"])) as fresh:
            submit(fresh)
        listed = {item["id"]: item for item in http.get("/v1/api-keys").json()["data"]}
        assert "key" not in listed[created["id"]]
        assert listed[created["id"]]["last_used_at"] is not None
        assert len(http.get("/v1/jobs").json()["data"]) == 1

    def test_a_revoked_key_opens_nothing(self, http: httpx.Client, api: Api, tenant: Tenant) -> None:
        created = http.post("/v1/api-keys", json={"name": "lost"}).json()
        with client(api, Tenant(tenant.workspace_id, created["key"])) as lost:
            assert lost.get("/v1/jobs").status_code == 200
            assert http.delete(f"/v1/api-keys/{created['id']}").status_code == 204
            check_problem(lost.get("/v1/jobs"), 401, "unauthenticated")
        assert http.delete(f"/v1/api-keys/{created['id']}").status_code == 204

    def test_a_key_cannot_revoke_itself(self, http: httpx.Client, tenant: Tenant) -> None:
        with transaction() as session:
            principal = keys.principal(session, tenant.key)
        assert principal is not None
        check_problem(http.delete(f"/v1/api-keys/{principal.key_id}"), 409, "own_key")

    def test_names_are_checked(self, http: httpx.Client) -> None:
        for body in ({}, {"name": ""}, {"name": 1}, {"name": "x", "scopes": []}, {"name": "a\x00"}):
            check_problem(http.post("/v1/api-keys", json=body), 422, "invalid")


class TestRequests:
    def test_a_given_request_id_comes_back(self, http: httpx.Client, api: Api) -> None:
        answer = http.get("/v1/jobs", headers={"X-Request-ID": "trace-1.a"})
        assert answer.headers["x-request-id"] == "trace-1.a"
        eventually(lambda: "request_id=trace-1.a" in api.log.read_text())
        forged = http.get("/v1/jobs", headers={"X-Request-ID": "a b"}).headers["x-request-id"]
        assert UUID(hex=forged)

    def test_unknown_paths_and_methods_are_problems(self, http: httpx.Client) -> None:
        check_problem(http.get("/v1/nonsense"), 404, "not_found")
        check_problem(http.get("/v1/jobs/"), 404, "not_found")
        check_problem(http.get("/%00"), 404, "not_found")
        wrong = http.put("/v1/jobs")
        check_problem(wrong, 405, "method_not_allowed")
        assert {"GET", "POST"} >= set(wrong.headers["allow"].replace(" ", "").split(",")) != set()

    def test_no_key_is_ever_logged(self, http: httpx.Client, api: Api, tenant: Tenant) -> None:
        created = http.post("/v1/api-keys", json={"name": "x"}).json()["key"]
        assert tenant.key not in api.log.read_text()
        assert created not in api.log.read_text()
