"""Events as pages and as a stream: in order, each once, to the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.support.api import check_problem, submit
from tests.support.jobs import claim, succeed, tell

STREAM = {"Accept": "text/event-stream"}


def messages(answer: httpx.Response) -> Iterator[dict[str, str]]:
    """The stream's messages, comments left out."""
    message: dict[str, str] = {}
    for line in answer.iter_lines():
        if line == "":
            if "data" in message:
                yield message
            message = {}
        elif not line.startswith(":"):
            field, _, value = line.partition(": ")
            message[field] = value


def test_pages_are_in_order_and_complete(http: httpx.Client) -> None:
    job_id = submit(http)
    for iteration in range(6):
        tell(job_id, iteration=iteration)
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = http.get(
            f"/v1/jobs/{job_id}/events", params={"limit": 3} | ({"cursor": cursor} if cursor else {})
        ).json()
        seen += [event["seq"] for event in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    tail = http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "5"}).json()["data"]
    assert [event["seq"] for event in tail] == [6, 7]


def test_the_stream_tells_the_past_then_the_present_then_ends(http: httpx.Client) -> None:
    job_id = submit(http)

    def run() -> None:
        claim(job_id)
        for iteration in range(20):
            tell(job_id, iteration=iteration)
        succeed(job_id, b"theta")

    worker = threading.Thread(target=run)
    heard: list[dict[str, str]] = []
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for message in messages(answer):
            heard.append(message)
            if len(heard) == 1:
                worker.start()
    worker.join()
    *told, last = heard
    assert [int(message["id"]) for message in told] == list(range(1, 24))
    assert [message["event"] for message in told] == ["state", "state", *["progress"] * 20, "state"]
    documents = [json.loads(message["data"]) for message in told]
    assert documents == http.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert (last["event"], json.loads(last["data"])) == ("end", {"state": "succeeded"})
    assert "id" not in last


def test_a_reconnect_goes_on_where_it_was_cut(http: httpx.Client) -> None:
    job_id = submit(http)
    for iteration in range(5):
        tell(job_id, iteration=iteration)
    http.post(f"/v1/jobs/{job_id}/cancel")
    seen: list[int] = []
    while True:
        headers = STREAM | ({"Last-Event-ID": str(seen[-1])} if seen else {})
        with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            received: list[dict[str, Any]] = []
            for message in messages(answer):
                received.append(message)
                if len(received) == 2:
                    break
        seen += [int(message["id"]) for message in received if "id" in message]
        if received[-1]["event"] == "end":
            break
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_the_stream_survives_the_loss_of_its_connection_to_the_database(http: httpx.Client, store: str) -> None:
    job_id = submit(http)
    url = make_url(store).set(drivername="postgresql").render_as_string(hide_password=False)
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        heard = messages(answer)
        assert next(heard)["id"] == "1"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND pid <> pg_backend_pid()"
            )
        tell(job_id, iteration=1)
        assert next(heard)["id"] == "2"
        http.post(f"/v1/jobs/{job_id}/cancel")
        assert [message["event"] for message in heard] == ["state", "end"]


def test_a_deleted_job_ends_its_stream(http: httpx.Client) -> None:
    job_id = submit(http)
    http.post(f"/v1/jobs/{job_id}/cancel")
    http.delete(f"/v1/jobs/{job_id}")
    check_problem(http.get(f"/v1/jobs/{job_id}/events", headers=STREAM), 404, "not_found")


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/*", ""])
def test_only_who_asks_for_a_stream_gets_one(http: httpx.Client, accept: str) -> None:
    answer = http.get(f"/v1/jobs/{submit(http)}/events", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("value", ["x", "-1", "1.0", "9" * 30])
def test_a_wrong_last_event_id_is_refused(http: httpx.Client, value: str) -> None:
    answer = http.get(f"/v1/jobs/{submit(http)}/events", headers={"Last-Event-ID": value})
    check_problem(answer, 400, "bad_header")
