"""Every call of the API as a conversation, for both clients."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

from pydantic import RootModel

from amaml_client.download import download
from amaml_client.errors import NoInitialization, TimedOut, Unreachable
from amaml_client.exchange import WAITING_PATIENCE, Conversation, ModelT, Send, Sleep, exchange, fetch, read, segment
from amaml_client.results import Adaptation, Curves, Dataset, Delivery, Job, Kind, Page, Study, Usage, Webhook


@runtime_checkable
class Array(Protocol):
    """Of NumPy's or torch's."""

    def tolist(self) -> Any: ...


Rows = Sequence[Any] | Array
"""Rows of numbers, a number a row, or the name of an input a row."""

PAGE = 100
WEBHOOKS = "/v1/webhooks"
ADAPTATIONS = "/v1/adaptations"
MOST_WAIT = 25
"""Seconds that one request for an adaptation waits: less than what this client waits for an answer."""

EndingT = TypeVar("EndingT", Job, Study)
WaitedForT = TypeVar("WaitedForT", Job, Study, Adaptation, Dataset)


def submit(spec: Mapping[str, Any], idempotency_key: str | None) -> Conversation[Job]:
    # One key for all tries of this call: a lost answer doesn't become a second job.
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    return fetch(Job, Send("POST", "/v1/jobs", headers=headers, json=spec))


def job(job_id: str) -> Conversation[Job]:
    return fetch(Job, Send("GET", f"/v1/jobs/{segment(job_id)}"))


def jobs(filters: Mapping[str, str | None], limit: int | None) -> Conversation[list[Job]]:
    return _listed(Job, "/v1/jobs", filters, limit)


def change(job_id: str, verb: str) -> Conversation[Job]:
    """cancel, pause or resume."""
    return fetch(Job, Send("POST", f"/v1/jobs/{segment(job_id)}/{verb}"))


def extend(job_id: str, iterations: int) -> Conversation[Job]:
    return fetch(Job, Send("POST", f"/v1/jobs/{segment(job_id)}/extend", json={"iterations": iterations}))


def delete(path: str, item_id: str) -> Conversation[None]:
    yield from exchange(Send("DELETE", f"{path}/{segment(item_id)}"))


def wait(job_id: str, timeout: float | None) -> Conversation[Job]:
    return _until_it_ends(Job, f"/v1/jobs/{segment(job_id)}", timeout, None)


def _until_it_ends(
    model: type[EndingT], path: str, timeout: float | None, on_change: Callable[[EndingT], None] | None
) -> Conversation[EndingT]:
    """An answer without change is an empty 304; `on_change` gets every change."""
    found: EndingT | None = None
    etag = ""

    def ask() -> Conversation[EndingT]:
        nonlocal found, etag
        headers = {"If-None-Match": etag} if etag else {}
        reply = yield from exchange(Send("GET", path, headers=headers), WAITING_PATIENCE)
        if found is None or reply.status != 304:
            found = read(model, path, reply)
            etag = reply.headers.get("etag", "")
            if on_change is not None:
                on_change(found)
        return found

    return _poll(ask, lambda one: one.ended, timeout)


def _poll(
    ask: Callable[[], Conversation[WaitedForT]], done: Callable[[WaitedForT], bool], timeout: float | None
) -> Conversation[WaitedForT]:
    """Asks again and again, ever more rarely, until the answer is done. Raises TimedOut."""
    give_up = None if timeout is None else monotonic() + timeout
    pause = 0.1
    while not done(found := (yield from ask())):
        if give_up is not None and timeout is not None and monotonic() + pause > give_up:
            raise TimedOut(found, timeout)
        yield Sleep(pause)
        pause = min(1.5 * pause, 2.0)
    return found


def metrics(job_id: str, name: str | None, from_step: int | None, max_points: int | None) -> Conversation[Curves]:
    params = _given({"name": name, "from_step": from_step, "max_points": max_points})
    send = Send("GET", f"/v1/jobs/{segment(job_id)}/metrics", params)
    reply = yield from exchange(send)
    return read(RootModel[Curves], send.path, reply).root


def initialization(job_id: str, path: Path) -> Conversation[Path]:
    found = yield from job(job_id)
    if found.initialization is None:
        raise NoInitialization(found)
    size, sha256 = found.initialization.size_bytes, found.initialization.sha256
    return (yield from download(f"/v1/jobs/{segment(job_id)}/initialization", path, sha256, size))


def adapt(
    job_id: str, request: Mapping[str, Any], idempotency_key: str | None, timeout: float | None
) -> Conversation[Adaptation]:
    """`request`: as the API takes it, but for members that are None."""
    # One key for all tries of this call, as in `submit`.
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    headers["Prefer"] = f"wait={MOST_WAIT if timeout is None else max(0, min(int(timeout), MOST_WAIT))}"
    send = Send("POST", f"/v1/jobs/{segment(job_id)}/adaptations", headers=headers, json=_set(request))
    asked: Adaptation | None = None

    def ask() -> Conversation[Adaptation]:
        nonlocal asked
        if asked is None:
            asked = yield from fetch(Adaptation, send)
        else:
            path = f"{ADAPTATIONS}/{segment(asked.id)}"
            asked = read(Adaptation, path, (yield from exchange(Send("GET", path), WAITING_PATIENCE)))
        return asked

    return _poll(ask, lambda one: one.ended, timeout)


def rows(
    support_x: Rows, support_y: Rows, query_x: Rows | None, query_y: Rows | None
) -> dict[str, dict[str, Any] | None]:
    """The sets of a request; arrays of NumPy's and torch's kind become lists."""
    query = None
    if query_x is not None:
        query = _set({"x": _listed_rows(query_x), "y": None if query_y is None else _listed_rows(query_y)})
    return {"support": {"x": _listed_rows(support_x), "y": _listed_rows(support_y)}, "query": query}


def _listed_rows(values: Rows) -> list[Any]:
    listed: list[Any] = values.tolist() if isinstance(values, Array) else list(values)
    return listed


def adaptation(adaptation_id: str) -> Conversation[Adaptation]:
    return fetch(Adaptation, Send("GET", f"{ADAPTATIONS}/{segment(adaptation_id)}"))


def adaptations(job_id: str, state: str | None, limit: int | None) -> Conversation[list[Adaptation]]:
    return _listed(Adaptation, f"/v1/jobs/{segment(job_id)}/adaptations", {"state": state}, limit)


def weights(adaptation_id: str, path: Path) -> Conversation[Path]:
    source = f"{ADAPTATIONS}/{segment(adaptation_id)}/weights"
    while (found := (yield from adaptation(adaptation_id))).weights is None:
        yield from exchange(Send("GET", source))  # raises NotFound, with the server's own sentence
    return (yield from download(source, path, found.weights.sha256, found.weights.size_bytes))


def upload(
    path: Path,
    name: str | None,
    format_: str,
    sent: Callable[[int], None] | None,
    wait: bool,
) -> Conversation[Dataset]:
    with path.open("rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
    params = {"format": format_, "name": path.name if name is None else name}
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(path.stat().st_size),
        "Content-Digest": f"sha-256=:{digest}:",
        # One key for all tries of this call, as in `submit`.
        "Idempotency-Key": str(uuid4()),
    }
    send = Send("POST", "/v1/datasets", params, headers, upload=path, sent=sent)
    for tries_left in (2, 1, 0):
        try:
            stored = yield from fetch(Dataset, send)
        except Unreachable:
            # What was cut amid a long upload has used up the patience of `exchange` and deserves another try.
            if not tries_left:
                raise
        else:
            break
    return (yield from wait_for_dataset(stored.id, None)) if wait and not stored.checked else stored


def dataset(dataset_id: str) -> Conversation[Dataset]:
    return fetch(Dataset, Send("GET", f"/v1/datasets/{segment(dataset_id)}"))


def datasets(filters: Mapping[str, str | None], limit: int | None) -> Conversation[list[Dataset]]:
    return _listed(Dataset, "/v1/datasets", filters, limit)


def wait_for_dataset(dataset_id: str, timeout: float | None) -> Conversation[Dataset]:
    path = f"/v1/datasets/{segment(dataset_id)}"

    def ask() -> Conversation[Dataset]:
        return read(Dataset, path, (yield from exchange(Send("GET", path), WAITING_PATIENCE)))

    return _poll(ask, lambda one: one.checked, timeout)


def make_webhook(url: str, settings: Mapping[str, Any]) -> Conversation[Webhook]:
    send = Send("POST", WEBHOOKS, json={"url": url, **_set(settings)})
    # Sent once: a lost answer would have been the only one that shows the secret.
    return read(Webhook, send.path, (yield from exchange(send, patience=0)))


def webhook(webhook_id: str) -> Conversation[Webhook]:
    return fetch(Webhook, Send("GET", f"{WEBHOOKS}/{segment(webhook_id)}"))


def webhooks(limit: int | None) -> Conversation[list[Webhook]]:
    return _listed(Webhook, WEBHOOKS, {}, limit)


def change_webhook(webhook_id: str, changes: Mapping[str, Any]) -> Conversation[Webhook]:
    return fetch(Webhook, Send("PATCH", f"{WEBHOOKS}/{segment(webhook_id)}", json=_set(changes)))


def rotate_webhook(webhook_id: str, overlap_seconds: int | None) -> Conversation[Webhook]:
    path, params = f"{WEBHOOKS}/{segment(webhook_id)}/rotate", _given({"overlap_seconds": overlap_seconds})
    return read(Webhook, path, (yield from exchange(Send("POST", path, params), patience=0)))


def test_webhook(webhook_id: str) -> Conversation[Delivery]:
    return fetch(Delivery, Send("POST", f"{WEBHOOKS}/{segment(webhook_id)}/test"))


def deliveries(webhook_id: str, state: str | None, limit: int | None) -> Conversation[list[Delivery]]:
    return _listed(Delivery, f"{WEBHOOKS}/{segment(webhook_id)}/deliveries", {"state": state}, limit)


def delivery(webhook_id: str, delivery_id: str) -> Conversation[Delivery]:
    return fetch(Delivery, Send("GET", f"{WEBHOOKS}/{segment(webhook_id)}/deliveries/{segment(delivery_id)}"))


def redeliver(webhook_id: str, delivery_id: str) -> Conversation[Delivery]:
    path = f"{WEBHOOKS}/{segment(webhook_id)}/deliveries/{segment(delivery_id)}/redeliver"
    return fetch(Delivery, Send("POST", path))


def submit_study(study: Mapping[str, Any], idempotency_key: str | None) -> Conversation[Study]:
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    return fetch(Study, Send("POST", "/v1/studies", headers=headers, json=study))


def study(study_id: str) -> Conversation[Study]:
    return fetch(Study, Send("GET", f"/v1/studies/{segment(study_id)}"))


def studies(limit: int | None) -> Conversation[list[Study]]:
    return _listed(Study, "/v1/studies", {}, limit)


def cancel_study(study_id: str) -> Conversation[Study]:
    return fetch(Study, Send("POST", f"/v1/studies/{segment(study_id)}/cancel"))


def wait_for_study(
    study_id: str, timeout: float | None, on_change: Callable[[Study], None] | None
) -> Conversation[Study]:
    return _until_it_ends(Study, f"/v1/studies/{segment(study_id)}", timeout, on_change)


def study_report(study_id: str, format_: str, score: str | None) -> Conversation[Any]:
    params = _given({"format": format_, "score": score})
    reply = yield from exchange(Send("GET", f"/v1/studies/{segment(study_id)}/report", params))
    return json.loads(reply.body) if format_ == "json" else reply.body.decode()


def kinds(what: str) -> Conversation[list[Kind]]:
    """families, models, methods or solvers."""
    return _listed(Kind, f"/v1/{what}", {}, None)


def usage() -> Conversation[Usage]:
    return fetch(Usage, Send("GET", "/v1/usage"))


def _listed(
    model: type[ModelT], path: str, filters: Mapping[str, str | None], limit: int | None
) -> Conversation[list[ModelT]]:
    """Pages fetched one after another until there are `limit` items, or no more."""
    found: list[ModelT] = []
    cursor: str | None = None
    while limit is None or len(found) < limit:
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        page = yield from fetch(Page[model], Send("GET", path, _given({**filters, "limit": size, "cursor": cursor})))  # type: ignore[valid-type]
        found += page.data
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _given(params: Mapping[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items() if value is not None}


def _set(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
