"""Conversations with the server, without the I/O.

A conversation is a generator: it yields what to do next (`Send`, `Sleep`) and gets the outcome back. The two clients
differ only in how they do these steps, so retries, paging and waiting are written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from amaml_client.errors import UnexpectedAnswer, Unreachable, problem

PATIENCE = 4.0
"""Seconds that a call goes on trying while nobody answers."""
WAITING_PATIENCE = 60.0
"""The same for calls that wait for a job anyway: a restart of the server shouldn't end them."""


class Sink(Protocol):
    """Takes a large answer piece by piece, over several tries."""

    def headers(self) -> Mapping[str, str]:
        """What to ask for, given what is already there."""

    def begin(self, reply: Reply) -> None:
        """The answer's head; called once a try."""

    def write(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Send:
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Path | None = None
    """A file that is the body."""
    sent: Callable[[int], None] | None = None
    """Told, while an upload goes on, how many bytes of it are on their way; starts anew with every try."""
    sink: Sink | None = None
    """Takes the body of a good answer."""

    def all_headers(self) -> dict[str, str]:
        return {**self.headers, **(self.sink.headers() if self.sink else {})}


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes = b""


Step = Send | Sleep
Outcome = Reply | Unreachable | None
T = TypeVar("T")
Conversation = Generator[Step, Outcome, T]
ModelT = TypeVar("ModelT", bound=BaseModel)

BUSY = (502, 503, 504)


def exchange(send: Send, patience: float = PATIENCE) -> Conversation[Reply]:
    """Sends until an answer comes; every call here may be sent twice. Raises Unreachable, Problem."""
    give_up = monotonic() + patience
    pause, lost = 0.1, False
    while True:
        outcome = yield send
        lost = lost or isinstance(outcome, Unreachable)
        if isinstance(outcome, Reply) and not _busy(outcome):
            break
        if monotonic() + pause > give_up:
            break
        yield Sleep(pause)
        pause = min(2 * pause, 2.0)
    if isinstance(outcome, Reply):
        # Gone after a lost answer: that answer was the good one.
        if not (send.method == "DELETE" and lost and outcome.status == 404):
            check(outcome)
        return outcome
    if isinstance(outcome, Unreachable):
        raise outcome
    raise TypeError(f"a Send must be answered by a Reply or an Unreachable, not {outcome!r}")


def _busy(reply: Reply) -> bool:
    """Worth asking again: nobody behind the door yet, or our own first try is still at work."""
    return reply.status in BUSY or (reply.status == 409 and b'"idempotency_in_flight"' in reply.body)


def check(reply: Reply) -> None:
    """Raises the Problem that the reply is, if it is one."""
    if reply.status < 400:
        return
    try:
        document = json.loads(reply.body)
    except ValueError:
        document = {}
    if not isinstance(document, dict) or "detail" not in document:
        # Not ours: a proxy's page, or another server on this port.
        document = {"detail": f"the server answered {reply.status} without a reason", "body": repr(reply.body[:500])}
    after = reply.headers.get("retry-after", "")
    raise problem(reply.status, document, float(after) if after.isdigit() else None)


def fetch(model: type[ModelT], send: Send) -> Conversation[ModelT]:
    """Sends, and reads the answer as the model."""
    reply = yield from exchange(send)
    return read(model, send.path, reply)


def read(model: type[ModelT], path: str, reply: Reply) -> ModelT:
    """The answer's body as the model; raises UnexpectedAnswer."""
    try:
        return model.model_validate_json(reply.body)
    except ValidationError as error:
        raise UnexpectedAnswer(path, f"status {reply.status}, {error.error_count()} fields amiss: {error}") from error


def segment(text: str) -> str:
    """An id as one segment of a path, whatever the user typed."""
    return quote(text, safe="") or "-"
