"""Both clients behind one face, and a time of their own that takes none of ours."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from amaml_client import AsyncClient

Open = Callable[..., Any]
"""Opens a client; to the test's server unless another address is given."""


class Awaited:
    """An AsyncClient whose calls are awaited at once, so that one test serves both."""

    def __init__(self, *settings: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*settings)

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **options)
            return self._collected(result) if inspect.isasyncgen(result) else self._loop.run_until_complete(result)

        return call

    def _collected(self, events: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(events))
            except StopAsyncIteration:
                return


class Clock:
    """The clients' time: it passes in their pauses alone, and these are over at once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pauses: list[float] = []
        patch.setattr("amaml_client.exchange.monotonic", lambda: sum(self.pauses))
        patch.setattr("amaml_client.client.time", SimpleNamespace(sleep=self._pause))
        patch.setattr("amaml_client.async_client.asyncio", SimpleNamespace(sleep=self._pause_in_a_loop))

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def _pause_in_a_loop(self, seconds: float) -> None:
        self.pauses.append(seconds)
