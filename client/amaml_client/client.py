"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Self

import httpx2

from amaml_client import calls
from amaml_client.errors import Unreachable
from amaml_client.events import PAUSE, EventReader
from amaml_client.exchange import Conversation, Outcome, Send, Sleep, Step, T
from amaml_client.results import Curves, Dataset, Event, Job, Kind
from amaml_client.transport import arguments, head, is_event_stream, options, reply


class Client:
    """A connection to one A-MAML server; close it, or use it in a `with`.

    `url` defaults to AMAML_URL, else port AMAML_PORT (8000) of this machine; `key` to AMAML_API_KEY, else the local
    stack's $AMAML_HOME/admin.key. Every call is tried again for some seconds while nobody answers, and then raises
    Unreachable; an answer that is an error raises the Problem that it is (see `amaml_client.errors`).
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._http = httpx2.Client(**options(url, key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return str(self._http.base_url).rstrip("/")

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queues a job. The same `idempotency_key` gives the same job again; left out, each call is a job."""
        return self._run(calls.submit(spec, idempotency_key))

    def job(self, job_id: str) -> Job:
        return self._run(calls.job(job_id))

    def jobs(
        self,
        *,
        state: str | None = None,
        family: str | None = None,
        method: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs that fit the filters, the latest first; all of them unless `limit` is given."""
        return self._run(calls.jobs({"state": state, "family": family, "method": method, "tag": tag}, limit))

    def cancel(self, job_id: str) -> Job:
        return self._run(calls.change(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        return self._run(calls.change(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        return self._run(calls.change(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Removes an ended job and all that belongs to it."""
        self._run(calls.delete("/v1/jobs", job_id))

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended, well or badly (`check()` tells); raises TimedOut after `timeout` seconds."""
        return self._run(calls.wait(job_id, timeout))

    def stream(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The job's events with a number above `after`, each once and in order, until it has ended."""
        reader = EventReader(job_id, after)
        while not reader.ended:
            try:
                with self._open(reader.request()) as response:
                    if is_event_stream(response):
                        reader.connected()
                        for sse in httpx2.EventSource(response):
                            yield from reader.take(sse)
                    else:
                        response.read()
                        reader.refused(reply(response))
            except httpx2.TransportError as error:
                reader.cut(Unreachable(self.url, error))
            if not reader.ended:
                time.sleep(PAUSE)

    def metrics(
        self,
        job_id: str,
        *,
        name: str | None = None,
        from_step: int | None = None,
        max_points: int | None = None,
    ) -> Curves:
        """Metric name → points (step, value)."""
        return self._run(calls.metrics(job_id, name, from_step, max_points))

    def download(self, job_id: str, path: str | PathLike[str]) -> Path:
        """Writes the learned initialization to `path` (safetensors), whole and verified or not at all.

        A cut download is gone on with, at once or at the next call. Raises NoInitialization, ChecksumMismatch.
        """
        return self._run(calls.initialization(job_id, Path(path)))

    def upload_dataset(self, path: str | PathLike[str], *, name: str | None = None, format: str = "auto") -> Dataset:  # noqa: A002 - the API's word
        """Streams a file to the server. Where its answer is lost and it is sent again, two equal data sets may be left."""
        return self._run(calls.upload(Path(path), name, format))

    def dataset(self, dataset_id: str) -> Dataset:
        return self._run(calls.dataset(dataset_id))

    def datasets(self, *, limit: int | None = None) -> list[Dataset]:
        return self._run(calls.datasets(limit))

    def delete_dataset(self, dataset_id: str) -> None:
        self._run(calls.delete("/v1/datasets", dataset_id))

    def families(self) -> list[Kind]:
        return self._run(calls.kinds("families"))

    def models(self) -> list[Kind]:
        return self._run(calls.kinds("models"))

    def methods(self) -> list[Kind]:
        return self._run(calls.kinds("methods"))

    def solvers(self) -> list[Kind]:
        return self._run(calls.kinds("solvers"))

    def _run(self, conversation: Conversation[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                outcome = self._take(conversation.send(outcome))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    def _take(self, step: Step) -> Outcome:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        try:
            with self._open(step) as response:
                if step.sink is None or not response.is_success:
                    response.read()
                    return reply(response)
                step.sink.begin(head(response))
                for chunk in response.iter_bytes():
                    step.sink.write(chunk)
                return head(response)
        except httpx2.TransportError as error:
            return Unreachable(self.url, error)

    def _open(self, send: Send) -> AbstractContextManager[httpx2.Response]:
        content = _pieces(send.upload) if send.upload else None
        return self._http.stream(**arguments(send), content=content)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 18):
            yield piece
