"""A job's events in order, each once, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from httpx2 import ServerSentEvent
from pydantic import ValidationError

from amaml_client.errors import AmamlError, ServerFailed, UnexpectedAnswer
from amaml_client.exchange import BUSY, WAITING_PATIENCE, Reply, Send, check, segment
from amaml_client.results import Event

EVENT_STREAM = "text/event-stream"
PAUSE = 0.5
"""Seconds between a connection's end and the next one."""


class EventReader:
    """Where a reader of one job's events is: what to ask for next, and what is new in the answer."""

    def __init__(self, job_id: str, after: int = 0) -> None:
        self._path = f"/v1/jobs/{segment(job_id)}/events"
        self._silent_since: float | None = None
        self.seq = after
        self.ended = False

    def request(self) -> Send:
        return Send("GET", self._path, headers={"Accept": EVENT_STREAM, "Last-Event-ID": str(self.seq)})

    def connected(self) -> None:
        """Somebody answers, with a stream."""
        self._silent_since = None

    def take(self, sse: ServerSentEvent) -> Iterator[Event]:
        """The event in a message of the stream, if it is a new one."""
        if sse.event == "end":
            self.ended = True
            return
        if not sse.data:
            return
        try:
            event = Event.model_validate_json(sse.data)
        except ValidationError as error:
            raise UnexpectedAnswer(self._path, f"an event that is none: {error}") from error
        if event.seq > self.seq:
            self.seq = event.seq
            yield event

    def refused(self, reply: Reply) -> None:
        """An answer that is no stream. Raises the Problem that it is, unless it is worth asking again."""
        try:
            check(reply)
        except ServerFailed as error:
            if reply.status not in BUSY:
                raise
            self.cut(error)
        else:
            raise UnexpectedAnswer(self._path, f"{reply.headers.get('content-type')} and no {EVENT_STREAM}")

    def cut(self, error: AmamlError) -> None:
        """The connection ended before the events did. Raises the error once nobody has answered for long."""
        self._silent_since = self._silent_since or monotonic()
        if monotonic() - self._silent_since > WAITING_PATIENCE:
            raise error
