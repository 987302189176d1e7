"""Celery's thread pool, which wakes the event loop when a thread is idle again.

A worker that fetches only with a free slot (`worker_disable_prefetch`) stops asking the broker while its slots are taken,
and the end of a task in a thread doesn't wake the loop that asks: it would fetch the next wake-up up to a second late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.concurrency.thread import ApplyResult, TaskPool
from kombu.asynchronous import get_event_loop


class Threads(TaskPool):  # type: ignore[misc]
    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **options: Any,
    ) -> ApplyResult:
        def done(result: Any) -> None:
            if callback is not None:
                callback(result)
            loop = get_event_loop()
            if loop is not None:
                loop.call_soon(_nothing)  # type: ignore[no-untyped-call]

        return super().on_apply(target, args, kwargs, done, accept_callback, **options)


def _nothing() -> None:
    """Does nothing: the loop reads messages whenever it has been woken."""
