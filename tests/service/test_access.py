"""Who may do what: every route is closed but those that are named public, and workspaces don't see each other."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest

from service.adaptations import store as adaptations
from service.core.database import transaction
from service.core.principal import Principal
from service.http.routes import api_routes
from service.keys import store as keys
from service.keys.authentication import RECENT_SECONDS, Recent, declared_scopes
from service.keys.scopes import SCOPES, Scope
from service.keys.tables import ApiKey
from service.main import PUBLIC, app
from tests.support.api import SPEC, Api, Tenant, check_problem, client, new_tenant, submit
from tests.support.jobs import claim, succeed
from tests.support.waiting import wait_until

CSV = b"user,item,rating\n1,10,4.0\n1,11,2.5\n"


UNKNOWN = "01a2054d-a188-75bf-b336-be8cb1ebcb98"


def _walk(routes: list[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _walk(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods)


def _routes() -> list[tuple[str, str]]:
    """Of the app's own table, not of its reference: what isn't documented is served all the same."""
    found = sorted(set(_walk(app.routes)))
    assert len(found) >= 40
    assert ("POST", "/v1/jobs") in found
    return found


def _closed() -> list[Any]:
    """Each route that needs a key, with the scope that it names."""
    scopes = {
        (method, route.path): declared_scopes(route)
        for route in api_routes(app.routes)
        for method in route.methods or ()
    }
    closed = [(method, path, scopes[method, path]) for method, path in _routes() if path not in PUBLIC]
    assert all(len(named) == 1 for _, _, named in closed), closed
    return [pytest.param(method, path, named[0], id=f"{method} {path}") for method, path, named in closed]


def _filled_in(path: str) -> str:
    return re.sub(r"\{\w+\}", UNKNOWN, path)


def test_the_reference_has_every_route() -> None:
    documented = {(method.upper(), path) for path, named in app.openapi()["paths"].items() for method in named}
    assert {(method, path) for method, path in _routes() if path not in PUBLIC} <= documented


@pytest.mark.parametrize(("method", "path", "scope"), _closed())
def test_a_route_is_closed_to_keys_without_its_scope(
    anyone: httpx.Client, tenant: Tenant, method: str, path: str, scope: Scope
) -> None:
    with transaction() as session:
        _, lacking = keys.add(session, tenant.workspace_id, "all but one", [one for one in SCOPES if one != scope])
        _, holding = keys.add(session, tenant.workspace_id, "one", [scope])
    refused = anyone.request(method, _filled_in(path), headers={"Authorization": f"Bearer {lacking}"})
    assert refused.status_code == 403
    if method != "HEAD":
        assert f"the scope {scope} " in check_problem(refused, 403, "missing_scope")["detail"]
    let_in = anyone.request(method, _filled_in(path), headers={"Authorization": f"Bearer {holding}"})
    assert let_in.status_code not in (401, 403)


@pytest.mark.parametrize(("method", "path"), _routes())
def test_only_public_routes_answer_without_a_key(anyone: httpx.Client, method: str, path: str) -> None:
    answer = anyone.request(method, _filled_in(path))
    if path in PUBLIC:
        assert answer.status_code in (200, 503) or (answer.status_code == 404 and "{" in path)
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    if method != "HEAD":
        check_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_reference_is_public(anyone: httpx.Client, path: str) -> None:
    assert anyone.get(path).status_code == 200


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
def test_what_is_no_key_is_refused(anyone: httpx.Client, header: str) -> None:
    headers = {"Authorization": header.strip().encode("latin-1")}
    check_problem(anyone.get("/v1/jobs", headers=headers), 401, "unauthenticated")


def test_a_key_is_stored_hashed_and_its_typing_errors_are_seen(tenant: Tenant) -> None:
    assert keys.is_well_formed(tenant.key)
    flipped = tenant.key[:20] + ("0" if tenant.key[20] != "0" else "1") + tenant.key[21:]
    assert not keys.is_well_formed(flipped)
    with transaction() as session:
        for column in ("key_hash", "prefix", "name"):
            assert tenant.key not in {getattr(row, column) for row in session.query(ApiKey)}


def test_other_workspaces_things_are_not_there(http: httpx.Client, api: Api, tenant: Tenant) -> None:
    job = submit(http)
    claim(job)
    succeed(job, b"theta")
    dataset = http.post("/v1/datasets", content=CSV).json()["id"]
    key = http.post("/v1/api-keys", json={"name": "mine"}).json()["id"]
    webhook = http.post("/v1/webhooks", json={"url": "https://1.1.1.1/hook"}).json()["id"]
    delivery = http.post(f"/v1/webhooks/{webhook}/test").json()["id"]
    study = http.post("/v1/studies", json={"base": SPEC, "grid": {"/runtime/seed": [0]}}).json()["id"]
    with transaction() as session:
        adaptation = adaptations.submit(session, tenant.workspace_id, UUID(job), {"by": "flow"})
        assert adaptation is not None
    with client(api, new_tenant()) as other:
        for collection in ("jobs", "datasets", "api-keys", "webhooks", "studies"):
            listed = other.get(f"/v1/{collection}").json()["data"]
            assert not {item["id"] for item in listed} & {job, dataset, key, webhook, study}
        for method, path in _routes():
            if "{" not in path or path in PUBLIC:
                continue
            own = {
                "job_id": job,
                "dataset_id": dataset,
                "key_id": key,
                "step": "1",
                "study_id": study,
                "webhook_id": webhook,
                "delivery_id": delivery,
                "adaptation_id": str(adaptation.id),
            }
            theirs = other.request(method, path.format(**own))
            nobodys = other.request(method, path.format(**dict.fromkeys(own, UNKNOWN) | {"step": "1"}))
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
            assert "was revoked" in check_problem(lost.get("/v1/jobs"), 401, "unauthenticated")["detail"]
        assert http.delete(f"/v1/api-keys/{created['id']}").status_code == 204

    def test_a_key_revoked_elsewhere_opens_nothing_after_a_second(
        self, http: httpx.Client, api: Api, tenant: Tenant
    ) -> None:
        created = http.post("/v1/api-keys", json={"name": "lost"}).json()
        with client(api, Tenant(tenant.workspace_id, created["key"])) as lost:
            assert lost.get("/v1/jobs").status_code == 200
            with transaction() as session:
                assert keys.revoke(session, tenant.workspace_id, UUID(created["id"]))
            time.sleep(RECENT_SECONDS + 0.1)
            assert lost.get("/v1/jobs").status_code == 401

    def test_a_key_cannot_revoke_itself(self, http: httpx.Client, tenant: Tenant) -> None:
        with transaction() as session:
            principal = keys.principal(session, tenant.key)
        assert principal is not None
        check_problem(http.delete(f"/v1/api-keys/{principal.key_id}"), 409, "own_key")

    def test_an_expired_key_opens_nothing(self, http: httpx.Client, api: Api, tenant: Tenant) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        created = http.post("/v1/api-keys", json={"name": "short", "expires_at": end.isoformat()}).json()
        assert datetime.fromisoformat(created["expires_at"]) == end
        with client(api, Tenant(tenant.workspace_id, created["key"])) as short:
            assert short.get("/v1/jobs").status_code == 200
            with transaction() as session:
                session.get_one(ApiKey, UUID(created["id"])).expires_at = datetime.now(UTC)
            wait_until(lambda: short.get("/v1/jobs").status_code == 401)
            assert "has expired" in check_problem(short.get("/v1/jobs"), 401, "unauthenticated")["detail"]

    def test_a_key_that_has_ended_is_not_remembered(self) -> None:
        recent, now = Recent(), datetime.now(UTC)
        recent.note("a key", Principal(uuid4(), uuid4(), ("*",), now))
        assert recent.principal("a key") is None

    def test_an_end_in_the_past_or_beyond_all_calendars_is_refused(self, http: httpx.Client) -> None:
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        for end in (past, "2030-01-01T00:00:00", "soon", 1, "9999-12-31T23:59:59-01:00", "9999-01-01T00:00:00Z"):
            problem = check_problem(http.post("/v1/api-keys", json={"name": "x", "expires_at": end}), 422, "invalid")
            assert problem["errors"][0]["pointer"] == "/expires_at"

    def test_a_key_hands_on_no_more_than_it_has(self, http: httpx.Client, api: Api, tenant: Tenant) -> None:
        end = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        asked = {"name": "lead", "scopes": ["keys:admin", "jobs:*"], "expires_at": end.isoformat()}
        lead = http.post("/v1/api-keys", json=asked).json()
        assert lead["scopes"] == ["keys:admin", "jobs:*"]
        with client(api, Tenant(tenant.workspace_id, lead["key"])) as limited:
            for scopes in (["*"], ["datasets:read"], ["jobs:read", "datasets:*"]):
                answer = limited.post("/v1/api-keys", json={"name": "x", "scopes": scopes})
                assert scopes[-1] in check_problem(answer, 403, "beyond_own_key")["detail"]
            later = {"name": "x", "expires_at": (end + timedelta(seconds=1)).isoformat()}
            check_problem(limited.post("/v1/api-keys", json=later), 403, "beyond_own_key")
            narrower = limited.post("/v1/api-keys", json={"name": "x", "scopes": ["jobs:read"]}).json()
            assert (narrower["scopes"], datetime.fromisoformat(narrower["expires_at"])) == (["jobs:read"], end)
            assert limited.post("/v1/api-keys", json={"name": "x"}).json()["scopes"] == lead["scopes"]

    def test_a_resource_and_everything_hold_their_scopes(self, api: Api, tenant: Tenant) -> None:
        for held, opened in ((["jobs:*"], ["jobs"]), (["*"], ["jobs", "datasets"]), (["jobs:read"], ["jobs"])):
            with transaction() as session:
                _, key = keys.add(session, tenant.workspace_id, "x", held)
            with client(api, Tenant(tenant.workspace_id, key)) as one:
                answers = {what: one.get(f"/v1/{what}").status_code for what in ("jobs", "datasets")}
            assert answers == {what: 200 if what in opened else 403 for what in answers}

    def test_names_are_checked(self, http: httpx.Client) -> None:
        for body in (
            {},
            {"name": ""},
            {"name": 1},
            {"name": "x", "scopes": []},
            {"name": "x", "scopes": ["jobs:fly"]},
            {"name": "a\x00"},
        ):
            check_problem(http.post("/v1/api-keys", json=body), 422, "invalid")


class TestRequests:
    def test_a_given_request_id_comes_back(self, http: httpx.Client, api: Api) -> None:
        answer = http.get("/v1/jobs", headers={"X-Request-ID": "trace-1.a"})
        assert answer.headers["x-request-id"] == "trace-1.a"
        wait_until(lambda: "request_id=trace-1.a" in api.log.read_text())
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
