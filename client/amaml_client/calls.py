"""Every call of the API as a conversation, for both clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from pydantic import RootModel

from amaml_client.download import download
from amaml_client.errors import NoInitialization, TimedOut
from amaml_client.exchange import WAITING_PATIENCE, Conversation, ModelT, Send, Sleep, exchange, fetch, read, segment
from amaml_client.results import Curves, Dataset, Job, Kind, Page

PAGE = 100


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


def delete(path: str, item_id: str) -> Conversation[None]:
    yield from exchange(Send("DELETE", f"{path}/{segment(item_id)}"))


def wait(job_id: str, timeout: float | None) -> Conversation[Job]:
    give_up = None if timeout is None else monotonic() + timeout
    path = f"/v1/jobs/{segment(job_id)}"
    found: Job | None = None
    etag, pause = "", 0.1
    while True:
        headers = {"If-None-Match": etag} if etag else {}
        reply = yield from exchange(Send("GET", path, headers=headers), WAITING_PATIENCE)
        if found is None or reply.status != 304:
            found = read(Job, path, reply)
            etag = reply.headers.get("etag", "")
        if found.ended:
            return found
        if give_up is not None and timeout is not None and monotonic() + pause > give_up:
            raise TimedOut(found, timeout)
        yield Sleep(pause)
        pause = min(1.5 * pause, 2.0)


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


def upload(path: Path, name: str | None, format_: str) -> Conversation[Dataset]:
    params = {"format": format_, "name": name or path.name}
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
    return fetch(Dataset, Send("POST", "/v1/datasets", params, headers, upload=path))


def dataset(dataset_id: str) -> Conversation[Dataset]:
    return fetch(Dataset, Send("GET", f"/v1/datasets/{segment(dataset_id)}"))


def datasets(limit: int | None) -> Conversation[list[Dataset]]:
    return _listed(Dataset, "/v1/datasets", {}, limit)


def kinds(what: str) -> Conversation[list[Kind]]:
    """families, models, methods or solvers."""
    return _listed(Kind, f"/v1/{what}", {}, None)


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
