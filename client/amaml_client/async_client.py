"""The asynchronous client. The synchronous one, `client.py`, is made from this file by `make client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Self

import httpx2

from amaml_client import calls
from amaml_client.calls import Rows
from amaml_client.errors import Unreachable
from amaml_client.events import PAUSE, EventReader
from amaml_client.exchange import Conversation, Outcome, Send, Sleep, Step, T
from amaml_client.results import Adaptation, Curves, Dataset, Delivery, Event, Job, Kind, Study, Usage, Webhook
from amaml_client.transport import arguments, head, is_event_stream, options, reply


class AsyncClient:
    """A connection to one A-MAML server, for asyncio; close it, or use it in an `async with`.

    `url` defaults to AMAML_URL, else port AMAML_PORT (8000) of this machine; `key` to AMAML_API_KEY, else the local
    stack's $AMAML_HOME/admin.key. Every call is tried again for some seconds while nobody answers, and then raises
    Unreachable; an answer that is an error raises the Problem that it is (see `amaml_client.errors`).
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._http = httpx2.AsyncClient(**options(url, key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def url(self) -> str:
        """The server's address."""
        return str(self._http.base_url).rstrip("/")

    async def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queues a job. The same `idempotency_key` gives the same job again; left out, each call is a job."""
        return await self._run(calls.submit(spec, idempotency_key))

    async def job(self, job_id: str) -> Job:
        return await self._run(calls.job(job_id))

    async def jobs(
        self,
        *,
        state: str | None = None,
        family: str | None = None,
        method: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs that fit the filters, the latest first; all of them unless `limit` is given."""
        return await self._run(calls.jobs({"state": state, "family": family, "method": method, "tag": tag}, limit))

    async def cancel(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "resume"))

    async def extend(self, job_id: str, iterations: int) -> Job:
        """Lets a job that succeeded go on to so many meta-iterations in all, as if it had never ended."""
        return await self._run(calls.extend(job_id, iterations))

    async def delete(self, job_id: str) -> None:
        """Removes an ended job and all that belongs to it."""
        await self._run(calls.delete("/v1/jobs", job_id))

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has ended, well or badly (`check()` tells); raises TimedOut after `timeout` seconds."""
        return await self._run(calls.wait(job_id, timeout))

    async def stream(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """The job's events with a number above `after`, each once and in order, until it has ended."""
        reader = EventReader(job_id, after)
        while not reader.ended:
            try:
                async with self._open(reader.request()) as response:
                    if is_event_stream(response):
                        reader.connected()
                        async for sse in httpx2.EventSource(response):
                            for event in reader.take(sse):
                                yield event
                    else:
                        await response.aread()
                        reader.refused(reply(response))
            except httpx2.TransportError as error:
                reader.cut(Unreachable(self.url, error))
            if not reader.ended:
                await asyncio.sleep(PAUSE)

    async def metrics(
        self,
        job_id: str,
        *,
        name: str | None = None,
        from_step: int | None = None,
        max_points: int | None = None,
    ) -> Curves:
        """Metric name → points (step, value)."""
        return await self._run(calls.metrics(job_id, name, from_step, max_points))

    async def download(self, job_id: str, path: str | PathLike[str]) -> Path:
        """Writes the learned initialization to `path` (safetensors), whole and verified or not at all.

        A cut download is gone on with, at once or at the next call. Raises NoInitialization, ChecksumMismatch.
        """
        return await self._run(calls.initialization(job_id, Path(path)))

    async def adapt(
        self,
        job_id: str,
        support_x: Rows,
        support_y: Rows,
        query_x: Rows | None = None,
        *,
        query_y: Rows | None = None,
        by: str = "flow",
        length: float | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        learned_rates: bool | None = None,
        want: Sequence[str] | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Adaptation:
        """Trains the job's learned network on a task's rows and predicts at others, all in the data's own units.

        Rows are lists, or arrays of NumPy's or torch's; `x` may be items' ids for `ratings`, and `y` is the index of
        each row's class where the network classifies. `by`: "flow", the inner flow over `length`, or "finetune", `epochs`
        of Adam at `lr`, or with `learned_rates` at `lr` times each parameter's; what isn't given is as the job had it.
        `want` names some of "predictions" (the default), "curve" and "weights"; `query_y` gives the curve the query's
        losses too. `check()` raises AdaptationFailed for one that failed. Raises TimedOut after `timeout` seconds.
        """
        rows = calls.rows(support_x, support_y, query_x, query_y)
        how = {"by": by, "length": length, "epochs": epochs, "lr": lr, "learned_rates": learned_rates}
        options = {**how, "return": want and list(want)}
        return await self._run(calls.adapt(job_id, {**rows, **options}, idempotency_key, timeout))

    async def adaptation(self, adaptation_id: str) -> Adaptation:
        return await self._run(calls.adaptation(adaptation_id))

    async def adaptations(self, job_id: str, *, state: str | None = None, limit: int | None = None) -> list[Adaptation]:
        """The job's, the latest first, without their results; all of them unless `limit` is given."""
        return await self._run(calls.adaptations(job_id, state, limit))

    async def download_weights(self, adaptation_id: str, path: str | PathLike[str]) -> Path:
        """Writes the adapted weights to `path` (safetensors, for `amaml.load`), whole and verified or not at all."""
        return await self._run(calls.weights(adaptation_id, Path(path)))

    async def delete_adaptation(self, adaptation_id: str) -> None:
        await self._run(calls.delete(calls.ADAPTATIONS, adaptation_id))

    async def upload_dataset(
        self,
        path: str | PathLike[str],
        *,
        name: str | None = None,
        format: str = "auto",  # noqa: A002 - the API's word
        wait: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Dataset:
        """Streams a file to the server, which gives the same data set for the same bytes, however often they are sent.

        A worker checks it then; jobs may name it at once. `wait`: return only when it is checked; `check()` raises
        DatasetInvalid for one that is no good. `name` is the file's own by default, and the same name again makes the
        next version. `progress` is called with the number of bytes sent.
        """
        return await self._run(calls.upload(Path(path), name, format, progress, wait))

    async def dataset(self, dataset_id: str) -> Dataset:
        return await self._run(calls.dataset(dataset_id))

    async def datasets(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        format: str | None = None,  # noqa: A002 - the API's word
        family: str | None = None,
        limit: int | None = None,
    ) -> list[Dataset]:
        """Data sets that fit the filters, the latest first, without their reports; all of them unless `limit` is given."""
        filters = {"state": state, "name": name, "format": format, "family": family}
        return await self._run(calls.datasets(filters, limit))

    async def wait_for_dataset(self, dataset_id: str, *, timeout: float | None = None) -> Dataset:
        """The data set once it is checked, well or badly (`check()` tells); raises TimedOut after `timeout` seconds."""
        return await self._run(calls.wait_for_dataset(dataset_id, timeout))

    async def delete_dataset(self, dataset_id: str) -> None:
        await self._run(calls.delete("/v1/datasets", dataset_id))

    async def make_webhook(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        signature: str | None = None,
        description: str | None = None,
    ) -> Webhook:
        """Has messages sent to `url`; the answer is the only one that shows `secret`.

        It is sent once: after Unreachable look into `webhooks()` before you make it again.
        """
        settings = {"events": events and list(events), "signature": signature, "description": description}
        return await self._run(calls.make_webhook(url, settings))

    async def webhook(self, webhook_id: str) -> Webhook:
        return await self._run(calls.webhook(webhook_id))

    async def webhooks(self, *, limit: int | None = None) -> list[Webhook]:
        """The latest first; all of them unless `limit` is given."""
        return await self._run(calls.webhooks(limit))

    async def change_webhook(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Changes what is given."""
        changes = {"url": url, "events": events and list(events), "description": description, "enabled": enabled}
        return await self._run(calls.change_webhook(webhook_id, changes))

    async def delete_webhook(self, webhook_id: str) -> None:
        await self._run(calls.delete(calls.WEBHOOKS, webhook_id))

    async def rotate_webhook(self, webhook_id: str, *, overlap_seconds: int | None = None) -> Webhook:
        """A new secret, which this answer alone shows; the old one signs beside it for the overlap (a day). Sent once."""
        return await self._run(calls.rotate_webhook(webhook_id, overlap_seconds))

    async def test_webhook(self, webhook_id: str) -> Delivery:
        """Has a message of type `webhook.test` sent."""
        return await self._run(calls.test_webhook(webhook_id))

    async def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None
    ) -> list[Delivery]:
        """What was sent, and what came of it, the latest first; all of them unless `limit` is given."""
        return await self._run(calls.deliveries(webhook_id, state, limit))

    async def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        return await self._run(calls.delivery(webhook_id, delivery_id))

    async def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Has an ended delivery sent again, under the same id."""
        return await self._run(calls.redeliver(webhook_id, delivery_id))

    async def submit_study(self, study: Mapping[str, Any], *, idempotency_key: str | None = None) -> Study:
        """Queues a job for every cell of a grid: {"name", "base": spec, "grid": {pointer: values}, "concurrency"}."""
        return await self._run(calls.submit_study(study, idempotency_key))

    async def study(self, study_id: str) -> Study:
        """A study with its cells."""
        return await self._run(calls.study(study_id))

    async def studies(self, *, limit: int | None = None) -> list[Study]:
        """Studies without their cells, the latest first; all of them unless `limit` is given."""
        return await self._run(calls.studies(limit))

    async def cancel_study(self, study_id: str) -> Study:
        return await self._run(calls.cancel_study(study_id))

    async def delete_study(self, study_id: str) -> None:
        await self._run(calls.delete("/v1/studies", study_id))

    async def wait_for_study(
        self, study_id: str, *, timeout: float | None = None, progress: Callable[[Study], None] | None = None
    ) -> Study:
        """The study once all its jobs have ended (`check()` tells how); raises TimedOut after `timeout` seconds.

        `progress` is called with every change.
        """
        return await self._run(calls.wait_for_study(study_id, timeout, progress))

    async def study_report(self, study_id: str, *, format: str = "json", score: str | None = None) -> Any:  # noqa: A002 - the API's word
        """The report: a dict, or text for the formats csv, md and html. `score` is `tuned` unless it says otherwise."""
        return await self._run(calls.study_report(study_id, format, score))

    async def families(self) -> list[Kind]:
        return await self._run(calls.kinds("families"))

    async def models(self) -> list[Kind]:
        return await self._run(calls.kinds("models"))

    async def methods(self) -> list[Kind]:
        return await self._run(calls.kinds("methods"))

    async def solvers(self) -> list[Kind]:
        return await self._run(calls.kinds("solvers"))

    async def usage(self) -> Usage:
        """The workspace's quotas, and what is used of them."""
        return await self._run(calls.usage())

    async def _run(self, conversation: Conversation[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                outcome = await self._take(conversation.send(outcome))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    async def _take(self, step: Step) -> Outcome:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        try:
            async with self._open(step) as response:
                if step.sink is None or not response.is_success:
                    await response.aread()
                    return reply(response)
                step.sink.begin(head(response))
                async for chunk in response.aiter_bytes():
                    step.sink.write(chunk)
                return head(response)
        except httpx2.TransportError as error:
            return Unreachable(self.url, error)

    def _open(self, send: Send) -> AbstractAsyncContextManager[httpx2.Response]:
        content = _pieces(send.upload, send.sent) if send.upload else None
        return self._http.stream(**arguments(send), content=content)


async def _pieces(path: Path, sent: Callable[[int], None] | None) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 1 << 18):
            yield piece
            if sent is not None:
                sent(file.tell())
