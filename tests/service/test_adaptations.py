"""Adaptations over HTTP, without a worker: what is queued, refused, listed, answered later and deleted."""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import httpx2 as httpx
import pytest
import safetensors.numpy
from sqlalchemy import func, select, update

from service.adaptations import store as adaptations
from service.adaptations.store import MAX_TRIES, Taken
from service.adaptations.tables import Adaptation
from service.core import blobs
from service.core.database import transaction
from service.core.refusals import TooMany
from service.core.tables import Blob
from tests.support.api import JSON, Api, check_problem, client, new_tenant, submit
from tests.support.jobs import claim, succeed
from tests.support.waiting import CEILING_SECONDS, wait_until
from worker.maintenance.reconciler import end_one_lapsed_lease

LEASE = timedelta(hours=1)
NOW = {"Prefer": "wait=0"}
RESULT = {"outputs": ["y"], "predictions": [[0.5]], "curve": None}
ROWS: dict[str, Any] = {"support": {"x": [[0.1], [0.2]], "y": [1.0, 2.0]}, "query": {"x": [[0.3]]}}


@pytest.fixture(autouse=True)
def _alone(store: str) -> None:
    """No adaptation of another test waits here, or will do so when its lease lapses."""
    with transaction() as session:
        adaptations.expire(session, timedelta(0))


def initialization(
    *,
    family: str = "sinusoid",
    objective: str = "regression",
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
) -> bytes:
    """As much of a file as the API reads."""
    metadata = {
        "spec": json.dumps({"family": {"kind": family}}),
        "objective": objective,
        "in_features": str(len(inputs)),
        "out_features": str(len(outputs)),
        "inputs": json.dumps(inputs),
        "outputs": json.dumps(outputs),
    }
    return safetensors.numpy.save({}, metadata)


def learned(http: httpx.Client, **file: Any) -> str:
    """A job that has succeeded."""
    job_id = submit(http)
    claim(job_id)
    succeed(job_id, initialization(**file))
    return job_id


def ask(http: httpx.Client, job_id: str, headers: dict[str, str] = NOW, **changes: Any) -> httpx.Response:
    return http.post(f"/v1/jobs/{job_id}/adaptations", json={**ROWS, **changes}, headers=headers)


def take(adaptation_id: str) -> Taken:
    """As a worker does; others, which were asked for before, are ended on the way."""
    while True:
        with transaction() as session:
            taken = adaptations.take_next(session, LEASE)
        assert taken is not None
        if str(taken.id) == adaptation_id:
            return taken
        with transaction() as session:
            adaptations.fail(session, taken, "error", "Not of this test.")


def answer(adaptation_id: str, weights: bytes | None = None) -> None:
    written = None if weights is None else blobs.write([weights])
    taken = take(adaptation_id)
    with transaction() as session:
        assert adaptations.succeed(session, taken, RESULT, written.blob_id if written else None)


def blob_ids() -> set[UUID]:
    with transaction() as session:
        return set(session.scalars(select(Blob.id)))


def pointers(answer: httpx.Response) -> list[str]:
    return [error["pointer"] for error in check_problem(answer, 422, "invalid")["errors"]]


def test_one_is_queued_taken_answered_and_deleted(http: httpx.Client) -> None:
    job_id = learned(http)
    before = blob_ids()
    asked = ask(http, job_id, **{"return": ["predictions", "weights"], "length": 0.5})
    assert asked.status_code == 202
    document = asked.json()
    path = f"/v1/adaptations/{document['id']}"
    assert asked.headers["Location"] == path == document["links"]["self"]
    assert (document["state"], document["job_id"], document["by"]) == ("queued", job_id, "flow")
    check_problem(http.get(f"{path}/weights"), 404, "no_weights")
    taken = take(document["id"])
    assert taken.request["length"] == 0.5
    assert taken.request["return"] == ["predictions", "weights"]
    assert http.get(path).json()["state"] == "running"
    written = blobs.write([b"weights"])
    with transaction() as session:
        assert adaptations.succeed(session, taken, RESULT, written.blob_id)
    ended = http.get(path).json()
    assert ended["result"] == RESULT
    assert ended["weights"] == {"sha256": hashlib.sha256(b"weights").hexdigest(), "size_bytes": 7}
    file = http.get(f"{path}/weights")
    digest = hashlib.sha256(b"weights")
    assert file.content == b"weights"
    assert file.headers["etag"] == f'"{digest.hexdigest()}"'
    assert file.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert http.get(f"{path}/weights", headers={"Range": "bytes=2-3"}).content == b"ig"
    assert http.head(f"{path}/weights").headers["content-length"] == "7"
    assert http.delete(path).status_code == 204
    check_problem(http.get(path), 404, "not_found")
    check_problem(http.delete(path), 404, "not_found")
    assert blob_ids() == before


def test_the_answer_waits_for_the_end(http: httpx.Client) -> None:
    job_id = learned(http)

    def answered(headers: dict[str, str]) -> httpx.Response | None:
        """The answer to one that ends while it is waited for; None if that took longer than the answer waits."""
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, http, job_id, headers)
            [queued] = wait_until(lambda: http.get(f"/v1/jobs/{job_id}/adaptations?state=queued").json()["data"])
            answer(queued["id"])
            got = waiting.result(CEILING_SECONDS)
        return got if got.status_code == 201 else None

    without_a_word: dict[str, str] = {}
    for headers in (without_a_word, {"Prefer": "wait=60"}):
        got = wait_until(partial(answered, headers))
        assert got is not None
        assert got.json()["result"] == RESULT
        assert got.headers.get("Preference-Applied") == headers.get("Prefer")


def test_a_wait_that_is_over_answers_202_and_the_result_later(http: httpx.Client) -> None:
    got = ask(http, learned(http), {"Prefer": "wait=1"})
    assert got.status_code == 202
    answer(got.json()["id"])
    assert http.get(got.headers["Location"]).json()["state"] == "succeeded"


def test_one_that_fails_says_why(http: httpx.Client) -> None:
    got = ask(http, learned(http))
    taken = take(got.json()["id"])
    with transaction() as session:
        adaptations.fail(session, taken, "solver_failed", "Shorten the length.")
    document = http.get(got.headers["Location"]).json()
    assert [document[name] for name in ("state", "status_reason", "status_detail", "result")] == [
        "failed", "solver_failed", "Shorten the length.", None,
    ]  # fmt: skip


def test_the_same_key_asks_once(http: httpx.Client) -> None:
    job_id = learned(http)
    key = {**NOW, "Idempotency-Key": "one"}
    first = ask(http, job_id, key)
    again = ask(http, job_id, key)
    assert first.json()["id"] == again.json()["id"]
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    check_problem(ask(http, job_id, key, by="finetune"), 422, "idempotency_mismatch")
    check_problem(ask(http, learned(http), key), 422, "idempotency_mismatch")
    answer(first.json()["id"])
    assert ask(http, job_id, key).json()["state"] == "succeeded"


def test_jobs_that_have_learned_nothing_are_refused(http: httpx.Client, api: Api) -> None:
    waiting = submit(http)
    assert "queued" in check_problem(ask(http, waiting), 409, "wrong_state")["detail"]
    check_problem(ask(http, "nonsense"), 404, "not_found")
    job_id = submit(http)
    claim(job_id)
    succeed(job_id, b"\xff" * 64)
    check_problem(ask(http, job_id), 409, "wrong_state")


def test_workspaces_are_apart(http: httpx.Client, api: Api) -> None:
    job_id = learned(http)
    path = ask(http, job_id).headers["Location"]
    with client(api, new_tenant()) as other:
        for request in (
            ask(other, job_id), other.get(f"/v1/jobs/{job_id}/adaptations"), other.get(path), other.delete(path),
            other.get(f"{path}/weights"),
        ):  # fmt: skip
            check_problem(request, 404, "not_found")
    assert http.get(path).status_code == 200


def test_lists_are_the_jobs_own_newest_first_and_without_results(http: httpx.Client) -> None:
    job_id, other = learned(http), learned(http)
    ids = [ask(http, job_id).json()["id"] for _ in range(3)]
    ask(http, other)
    answer(ids[0])
    first = http.get(f"/v1/jobs/{job_id}/adaptations?limit=2").json()
    last = http.get(f"/v1/jobs/{job_id}/adaptations?limit=2&cursor={first['next_cursor']}").json()
    assert [one["id"] for one in first["data"] + last["data"]] == ids[::-1]
    assert last["next_cursor"] is None
    assert all("result" not in one for one in first["data"] + last["data"])
    listed = http.get(f"/v1/jobs/{job_id}/adaptations?state=succeeded").json()["data"]
    assert [one["id"] for one in listed] == ids[:1]


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"support": None}, ["/support"]),
    ({"support": {"x": [], "y": []}}, ["/support/x", "/support/y"]),
    ({"support": {"x": [[0.1]]}}, ["/support/y"]),
    ({"support": {"x": [[0.1, 0.2]], "y": [1]}}, ["/support/x/0"]),
    ({"support": {"x": [[0.1], [0.2, 0.3]], "y": [1, 2]}}, ["/support/x/1"]),
    ({"support": {"x": [[0.1], 0.2], "y": [1, 2]}}, ["/support/x/1"]),
    ({"support": {"x": [0.1, [0.2]], "y": [1, 2]}}, ["/support/x/1"]),
    ({"support": {"x": [[0.1], [None]], "y": [1, True]}}, ["/support/x/1/0", "/support/y/1"]),
    ({"support": {"x": [["0.1"]], "y": [1]}}, ["/support/x/0/0"]),
    ({"support": {"x": ["a"], "y": [1]}}, ["/support/x/0"]),
    ({"support": {"x": [{}], "y": [1]}}, ["/support/x/0"]),
    ({"support": {"x": [0.1], "y": [1, 2]}}, ["/support/y"]),
    ({"support": {"x": [1e31], "y": [-(10**400)]}}, ["/support/x/0", "/support/y/0"]),
    ({"support": {"x": [[0.1]] * 10_001, "y": [1]}}, ["/support/x"]),
    ({"query": {"x": [[1, 2]], "y": [1, 2]}}, ["/query/x/0", "/query/y"]),
    ({"query": None}, ["/query"]),
    ({"query": None, "return": ["predictions"]}, ["/query"]),
    ({"by": "magic"}, ["/by"]),
    ({"by": "finetune", "length": 1.0}, ["/length"]),
    ({"epochs": 3, "lr": 0.1}, ["/epochs"]),
    ({"length": -1.0}, ["/length"]),
    ({"length": 10_001.0}, ["/length"]),
    ({"by": "finetune", "epochs": 10_001}, ["/epochs"]),
    ({"by": "finetune", "epochs": 0, "lr": 0.0}, ["/epochs", "/lr"]),
    ({"return": []}, ["/return"]),
    ({"return": ["everything"]}, ["/return/0"]),
    ({"shots": 3}, ["/shots"]),
    ({"support": {"x": [0.1], "y": [1], "z": []}}, ["/support/z"]),
]


@pytest.mark.parametrize(("change", "where"), BAD)
def test_bad_requests_are_told_field_by_field(http: httpx.Client, change: dict[str, Any], where: list[str]) -> None:
    assert pointers(ask(http, learned(http), **change)) == where


@pytest.mark.parametrize("number", [b"NaN", b"Infinity"])
def test_what_is_no_json_number_is_refused(http: httpx.Client, number: bytes) -> None:
    body = b'{"support": {"x": [[%s]], "y": [1]}, "query": {"x": [[1]]}}' % number
    got = http.post(f"/v1/jobs/{learned(http)}/adaptations", content=body, headers=JSON)
    check_problem(got, 400, "broken_json")


def test_an_infinite_number_is_refused(http: httpx.Client) -> None:
    body = b'{"support": {"x": [[1e999]], "y": [1]}, "query": {"x": [[1]]}}'
    assert pointers(http.post(f"/v1/jobs/{learned(http)}/adaptations", content=body, headers=JSON)) == [
        "/support/x/0/0"
    ]


def test_classes_are_whole_numbers_or_probabilities(http: httpx.Client) -> None:
    job_id = learned(http, objective="classification", outputs=("cat", "dog", "cow"))

    def with_y(*y: Any) -> httpx.Response:
        return ask(http, job_id, support={"x": [0.5] * len(y), "y": list(y)})

    assert [with_y(*y).status_code for y in ((0, 2.0), ([1], [2]), ([0.2, 0.3, 0.5], [1, 0, 0]))] == [202] * 3
    assert pointers(with_y(0, 3, -1, 0.5, True, [1, 2], "cat")) == [f"/support/y/{index}" for index in range(1, 7)]
    assert pointers(with_y([0.5, 0.5, 0], [1])) == ["/support/y/1"]


def test_ratings_are_given_by_item(http: httpx.Client) -> None:
    job_id = learned(http, family="ratings", inputs=("50", "7", "181"), outputs=("rating",))

    def with_x(x: list[Any]) -> httpx.Response:
        return ask(http, job_id, support={"x": x, "y": [3.0] * len(x)}, query={"x": ["7"]})

    assert with_x(["50", "181"]).status_code == 202
    assert with_x([[1, 0, 0], [0, 0, 1]]).status_code == 202
    assert pointers(with_x(["50", "51", 7])) == ["/support/x/1", "/support/x/2"]
    assert pointers(with_x([50, 181])) == ["/support/x/0", "/support/x/1"]


def test_too_many_predictions_and_too_large_a_body_are_refused(http: httpx.Client) -> None:
    wide = learned(http, outputs=tuple(f"y{index}" for index in range(50)))
    support = {"x": [0.1], "y": [[0.0] * 50]}
    assert ask(http, wide, support=support, query={"x": [0.1] * 4_000}).status_code == 202
    assert pointers(ask(http, wide, support=support, query={"x": [0.1] * 4_001})) == ["/query/x"]
    many = {"x": [[0.123456789] * 100] * 8_000, "y": [0.0] * 8_000}
    check_problem(ask(http, wide, support=many), 413, "too_large")


def test_a_lease_that_lapses_is_taken_by_another_and_the_first_writes_nothing(http: httpx.Client) -> None:
    adaptation_id = ask(http, learned(http)).json()["id"]
    for attempt in range(1, MAX_TRIES + 1):
        taken = take(adaptation_id)
        assert taken.attempt == attempt
        with transaction() as session:
            assert adaptations.QUEUE.renew(session, taken, timedelta(seconds=-1))
        assert end_one_lapsed_lease("adaptation")
    stale = replace(taken, attempt=1)
    with transaction() as session:
        assert not adaptations.QUEUE.renew(session, stale, LEASE)
        assert not adaptations.succeed(session, stale, RESULT, None)
        adaptations.fail(session, stale, "error", "Stale.")
        adaptations.give_back(session, stale, counted=False)
    document = http.get(f"/v1/adaptations/{adaptation_id}").json()
    assert (document["state"], document["status_reason"]) == ("failed", "crashed")


def test_no_more_wait_than_may_and_workspaces_take_turns(
    http: httpx.Client, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = learned(http)
    first, second, third = (ask(http, job_id).json()["id"] for _ in range(3))
    with client(api, new_tenant()) as other:
        theirs, their_second = (ask(other, learned(other)).json()["id"] for _ in range(2))

    def next_one() -> Taken:
        with transaction() as session:
            taken = adaptations.take_next(session, LEASE)
        assert taken is not None
        return taken

    take(first)
    fair = next_one()
    assert str(fair.id) == theirs, "one of the first workspace runs already"
    with transaction() as session:
        adaptations.succeed(session, fair, RESULT, None)
    fair = next_one()
    assert str(fair.id) == their_second, "none of the second workspace runs"
    with transaction() as session:
        assert adaptations.QUEUE.renew(session, fair, timedelta(seconds=-1))  # its worker is lost: it runs no more
    assert end_one_lapsed_lease("adaptation")
    assert str(next_one().id) == their_second
    take(second)
    take(third)
    with transaction() as session:
        workspace_id = session.get_one(Adaptation, UUID(first)).workspace_id
        monkeypatch.setattr(adaptations, "MAX_WAITING", 2)
        with pytest.raises(TooMany, match="2 adaptations of this workspace"):
            adaptations.submit(session, workspace_id, UUID(job_id), {"by": "flow"})


def test_one_that_is_given_back_is_taken_again(http: httpx.Client) -> None:
    adaptation_id = ask(http, learned(http)).json()["id"]
    taken_as = []
    for counted in (False, True, True):
        taken = take(adaptation_id)
        taken_as.append((taken.attempt, taken.tries))
        with transaction() as session:
            adaptations.give_back(session, taken, counted=counted)
    assert taken_as == [(1, 1), (2, 1), (3, 2)]


def test_they_go_with_their_job_and_with_time(http: httpx.Client) -> None:
    before = blob_ids()
    job_id = learned(http)
    ids = [ask(http, job_id).json()["id"] for _ in range(2)]
    for one in ids:
        answer(one, b"weights")
    with transaction() as session:
        old = update(Adaptation).where(Adaptation.id == UUID(ids[0]))
        session.execute(old.values(created_at=func.now() - timedelta(hours=2)))
        adaptations.expire(session, timedelta(hours=1))
    assert [http.get(f"/v1/adaptations/{one}").status_code for one in ids] == [404, 200]
    assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert http.get(f"/v1/adaptations/{ids[1]}").status_code == 404
    assert blob_ids() == before


def test_an_adaptation_may_be_deleted_while_someone_waits_for_it(http: httpx.Client) -> None:
    job_id = learned(http)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, http, job_id, {"Prefer": "wait=60"})
        [queued] = wait_until(lambda: http.get(f"/v1/jobs/{job_id}/adaptations").json()["data"])
        assert http.delete(queued["links"]["self"]).status_code == 204
        assert waiting.result(CEILING_SECONDS).status_code == 202
