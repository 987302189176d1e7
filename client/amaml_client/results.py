"""What the server answers, typed. Fields that a newer server adds are kept and don't disturb."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from amaml_client.errors import JobCancelled, JobFailed

State = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

Curves = dict[str, list[tuple[int, float | None]]]
"""Metric name → points (step, value); a value that isn't a finite number is null."""


class Result(BaseModel):
    # protected_namespaces: `model` is a word of ours.
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Progress(Result):
    iteration: int = 0
    iterations: int = 0
    eta_seconds: float | None = None


class Initialization(Result):
    sha256: str
    size_bytes: int
    parameters: int | None = None


class Job(Result):
    id: str
    name: str = ""
    tags: dict[str, str] = {}
    state: str
    """One of `State`; a newer server may know others."""
    phase: str | None = None
    progress: Progress = Progress()
    status_reason: str | None = None
    status_detail: str | None = None
    spec: dict[str, Any] = {}
    metrics: dict[str, float | None] = {}
    """Latest value of each metric."""
    initialization: Initialization | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """The state won't change any more."""
        return self.state in FINAL

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"

    def check(self) -> Self:
        """The job itself, unless it ended badly: then raises JobFailed or JobCancelled."""
        if self.state == "failed":
            raise JobFailed(self)
        if self.state == "cancelled":
            raise JobCancelled(self)
        return self


class Event(Result):
    seq: int
    """1, 2, 3, … within the job, without gaps."""
    kind: str
    data: dict[str, Any] = {}
    created_at: datetime | None = None


class Dataset(Result):
    id: str
    name: str
    format: str
    sha256: str
    bytes: int
    rows: int
    tasks: int
    state: str


class Kind(Result):
    """A task family, model, method or solver that specs may name."""

    kind: str
    summary: str = ""
    json_schema: dict[str, Any] = Field(default={}, alias="schema")


ItemT = TypeVar("ItemT")


class Page(Result, Generic[ItemT]):
    data: list[ItemT]
    next_cursor: str | None = None
