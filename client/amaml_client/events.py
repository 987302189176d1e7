"""A job's events in order, each once, over as many connections as it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import monotonic

from httpx2 import ServerSentEvent

from amaml_client.errors import AmamlError, ServerFailed
from amaml_client.exchange import BUSY, WAITING_PATIENCE, Reply, Send, check, read
from amaml_client.results import FINAL, Event, Page

POLL_SECONDS = 0.5


class EventReader:
    """Where a reader of one job's events is: what to ask for next, and what is new in an answer.

    Asks for a stream; a server that has none answers with a page, which is asked for again and again.
    """

    def __init__(self, job_id: str, after: int = 0) -> None:
        self._path = f"/v1/jobs/{job_id}/events"
        self._cursor: str | None = None
        self._silent_since: float | None = None
        self.seq = after
        self.ended = False
        self.pause = 0.0
        """Seconds to wait before the next request."""

    def request(self) -> Send:
        self.pause = POLL_SECONDS
        headers = {"Accept": "text/event-stream, application/json;q=0.5"}
        if self.seq:
            headers["Last-Event-ID"] = str(self.seq)
        return Send("GET", self._path, {"cursor": self._cursor} if self._cursor else {}, headers)

    def connected(self) -> None:
        """Somebody answers."""
        self._silent_since = None

    def sent(self, sse: ServerSentEvent) -> Iterator[Event]:
        """The new event in a message of the stream."""
        if sse.event == "end":
            self.ended = True
        elif sse.data and sse.id:
            document = json.loads(sse.data)
            if "seq" not in document:
                document = {"seq": int(sse.id), "kind": sse.event, "data": document}
            yield from self._new(Event.model_validate(document))

    def page(self, reply: Reply) -> Iterator[Event]:
        """The new events in a page; raises Problem."""
        try:
            check(reply)
        except ServerFailed as error:
            if reply.status not in BUSY:
                raise
            self.cut(error)
            return
        self.connected()
        page = read(Page[Event], self._path, reply)
        for event in page.data:
            yield from self._new(event)
            # Without a stream's end message the last word is the state that won't change any more.
            self.ended = self.ended or (event.kind == "state" and event.data.get("state") in FINAL)
        self._cursor = page.next_cursor or self._cursor
        if page.next_cursor and page.data:
            self.pause = 0.0

    def cut(self, error: AmamlError) -> None:
        """The connection ended before the events did. Raises the error once nobody has answered for long."""
        self._silent_since = self._silent_since or monotonic()
        if monotonic() - self._silent_since > WAITING_PATIENCE:
            raise error

    def _new(self, event: Event) -> Iterator[Event]:
        if event.seq > self.seq:
            self.seq = event.seq
            yield event
