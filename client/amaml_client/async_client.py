"""The asynchronous client: the same calls as `Client`, each to be awaited."""

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
    """As `Client`, for asyncio."""

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
        return await self._run(calls.jobs({"state": state, "family": family, "method": method, "tag": tag}, limit))

    async def cancel(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        return await self._run(calls.change(job_id, "resume"))

    async def extend(self, job_id: str, iterations: int) -> Job:
        return await self._run(calls.extend(job_id, iterations))

    async def delete(self, job_id: str) -> None:
        await self._run(calls.delete("/v1/jobs", job_id))

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        return await self._run(calls.wait(job_id, timeout))

    async def stream(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
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
        return await self._run(calls.metrics(job_id, name, from_step, max_points))

    async def download(self, job_id: str, path: str | PathLike[str]) -> Path:
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
        rows = calls.rows(support_x, support_y, query_x, query_y)
        how = {"by": by, "length": length, "epochs": epochs, "lr": lr, "learned_rates": learned_rates}
        options = {**how, "return": want and list(want)}
        return await self._run(calls.adapt(job_id, {**rows, **options}, idempotency_key, timeout))

    async def adaptation(self, adaptation_id: str) -> Adaptation:
        return await self._run(calls.adaptation(adaptation_id))

    async def adaptations(self, job_id: str, *, state: str | None = None, limit: int | None = None) -> list[Adaptation]:
        return await self._run(calls.adaptations(job_id, state, limit))

    async def download_weights(self, adaptation_id: str, path: str | PathLike[str]) -> Path:
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
        filters = {"state": state, "name": name, "format": format, "family": family}
        return await self._run(calls.datasets(filters, limit))

    async def wait_for_dataset(self, dataset_id: str, *, timeout: float | None = None) -> Dataset:
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
        settings = {"events": events and list(events), "signature": signature, "description": description}
        return await self._run(calls.make_webhook(url, settings))

    async def webhook(self, webhook_id: str) -> Webhook:
        return await self._run(calls.webhook(webhook_id))

    async def webhooks(self, *, limit: int | None = None) -> list[Webhook]:
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
        changes = {"url": url, "events": events and list(events), "description": description, "enabled": enabled}
        return await self._run(calls.change_webhook(webhook_id, changes))

    async def delete_webhook(self, webhook_id: str) -> None:
        await self._run(calls.delete(calls.WEBHOOKS, webhook_id))

    async def rotate_webhook(self, webhook_id: str, *, overlap_seconds: int | None = None) -> Webhook:
        return await self._run(calls.rotate_webhook(webhook_id, overlap_seconds))

    async def test_webhook(self, webhook_id: str) -> Delivery:
        return await self._run(calls.test_webhook(webhook_id))

    async def deliveries(
        self, webhook_id: str, *, state: str | None = None, limit: int | None = None
    ) -> list[Delivery]:
        return await self._run(calls.deliveries(webhook_id, state, limit))

    async def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        return await self._run(calls.delivery(webhook_id, delivery_id))

    async def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        return await self._run(calls.redeliver(webhook_id, delivery_id))

    async def submit_study(self, study: Mapping[str, Any], *, idempotency_key: str | None = None) -> Study:
        return await self._run(calls.submit_study(study, idempotency_key))

    async def study(self, study_id: str) -> Study:
        return await self._run(calls.study(study_id))

    async def studies(self, *, limit: int | None = None) -> list[Study]:
        return await self._run(calls.studies(limit))

    async def cancel_study(self, study_id: str) -> Study:
        return await self._run(calls.cancel_study(study_id))

    async def delete_study(self, study_id: str) -> None:
        await self._run(calls.delete("/v1/studies", study_id))

    async def wait_for_study(
        self, study_id: str, *, timeout: float | None = None, progress: Callable[[Study], None] | None = None
    ) -> Study:
        return await self._run(calls.wait_for_study(study_id, timeout, progress))

    async def study_report(self, study_id: str, *, format: str = "json", score: str | None = None) -> Any:  # noqa: A002 - the API's word
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
