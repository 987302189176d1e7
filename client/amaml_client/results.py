"""What the server answers, typed. Fields that a newer server adds are kept and don't disturb."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from amaml_client.errors import AdaptationFailed, DatasetInvalid, JobCancelled, JobFailed, StudyIncomplete

State = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

Curves = dict[str, list[tuple[int, float | None]]]
"""Metric name → points (step, value); a value that isn't a finite number is null."""


class Document(BaseModel):
    # protected_namespaces: `model` is a word of ours.
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Progress(Document):
    iteration: int = 0
    iterations: int = 0
    eta_seconds: float | None = None


class Initialization(Document):
    sha256: str
    size_bytes: int
    parameters: int | None = None


class Job(Document):
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


class Event(Document):
    seq: int
    """1, 2, 3, … within the job, without gaps."""
    kind: str
    data: dict[str, Any] = {}
    created_at: datetime | None = None


class Column(Document):
    """Of a table."""

    name: str
    type: str
    missing: int
    """Rows without a value."""


class LineError(Document):
    line: int
    """Counted from 1; 0 is the file as a whole."""
    detail: str


class DatasetReport(Document):
    """What the check of a data set found."""

    rows: int
    tasks: int | None = None
    columns: list[Column] = []
    images: dict[str, Any] | None = None
    """Their channels, height, width, dtype and classes."""
    errors: list[LineError] = []
    """The first of them; none in a good file."""


class Dataset(Document):
    id: str
    name: str
    version: int = 1
    format: str
    families: list[str] = []
    """Those that can read it."""
    sha256: str
    bytes: int
    rows: int | None = None
    """Null until it is ready."""
    tasks: int | None = None
    """Null until it is ready, and for tables, where a spec names the column that makes the tasks."""
    state: str
    """`pending` until a worker has checked it, then `ready` or `invalid`."""
    status_detail: str | None = None
    report: DatasetReport | None = None
    created_at: datetime | None = None
    checked_at: datetime | None = None

    @property
    def checked(self) -> bool:
        """The state won't change any more."""
        return self.state != "pending"

    def check(self) -> Self:
        """The data set itself, unless it is invalid: then raises DatasetInvalid."""
        if self.state == "invalid":
            raise DatasetInvalid(self)
        return self


class LossCurve(Document):
    """Losses on the way from the initialization, as the network was trained by: of standardised units."""

    over: str
    """What `at` counts: `t` of the flow, or `epochs`."""
    at: list[float]
    support: list[float | None]
    query: list[float | None] | None = None
    """Null where the query's targets weren't given."""


class AdaptationResult(Document):
    outputs: list[str] = []
    """What each number of a row of predictions is: a quantity, or the class whose probability it is."""
    predictions: list[list[float]] | None = None
    curve: LossCurve | None = None


class Weights(Document):
    sha256: str
    size_bytes: int


class Adaptation(Document):
    """A learned initialization, trained on one task's rows."""

    id: str
    job_id: str
    by: str
    """`flow` or `finetune`."""
    state: str
    """`queued` and `running`, then `succeeded` or `failed`."""
    status_reason: str | None = None
    status_detail: str | None = None
    weights: Weights | None = None
    """Where they were asked for; `download_weights` fetches them."""
    result: AdaptationResult | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """The state won't change any more."""
        return self.state in FINAL

    def check(self) -> Self:
        """The adaptation itself, unless it failed: then raises AdaptationFailed."""
        if self.state == "failed":
            raise AdaptationFailed(self)
        return self

    @property
    def predictions(self) -> list[list[float]]:
        """A row a query point, in the data's own units; empty where there are none."""
        return (self.result and self.result.predictions) or []

    @property
    def outputs(self) -> list[str]:
        """What each number of a row of predictions is."""
        return self.result.outputs if self.result else []

    @property
    def curve(self) -> LossCurve | None:
        """Where it was asked for."""
        return self.result.curve if self.result else None


class Webhook(Document):
    id: str
    url: str
    description: str = ""
    events: list[str] = []
    signature: str = "hmac"
    public_key: str | None = None
    """What signatures of kind ed25519 are verified with."""
    secret: str | None = None
    """Shown once: by the call that makes it."""
    previous_secret_until: datetime | None = None
    enabled: bool = True
    disabled_reason: str | None = None
    failures: int = 0
    failing_since: datetime | None = None
    created_at: datetime | None = None


class DeliveryAttempt(Document):
    number: int
    started_at: datetime | None = None
    seconds: float | None = None
    status: int | None = None
    error: str | None = None
    response: str | None = None
    """The beginning of the receiver's answer."""


class Delivery(Document):
    """One message to one webhook."""

    id: str
    """The message's `webhook-id`."""
    type: str
    state: str
    """`pending`, `succeeded` or `failed`."""
    attempts: list[DeliveryAttempt] = []
    next_attempt_at: datetime | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    body: str | None = None
    """What is sent, to the byte; not in lists."""


class Cell(Document):
    """One job of a study, and where in the grid it is."""

    cell: dict[str, Any]
    """JSON Pointer into the spec → value."""
    job_id: str
    state: str
    status_reason: str | None = None
    status_detail: str | None = None
    progress: Progress = Progress()
    metrics: dict[str, float | None] = {}


class Study(Document):
    id: str
    name: str = ""
    state: str
    """`running`, `cancelling`, and when every job has ended `finished` or `cancelled`."""
    concurrency: int
    cells: int
    """How many jobs it has."""
    states: dict[str, int] = {}
    """State → how many of its jobs are in it."""
    progress: Progress = Progress()
    """Of all jobs together."""
    base: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    jobs: list[Cell] | None = None
    """Null in a list of studies."""
    created_at: datetime
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """The state won't change any more."""
        return self.state in ("finished", "cancelled")

    def check(self) -> Self:
        """The study itself, unless it ended with jobs that didn't succeed: then raises StudyIncomplete."""
        if self.ended and self.states.get("succeeded", 0) < self.cells:
            raise StudyIncomplete(self)
        return self


class Kind(Document):
    """A task family, model, method or solver that specs may name."""

    kind: str
    summary: str = ""
    json_schema: dict[str, Any] = Field(default={}, alias="schema")


class Quota(Document):
    """One of the workspace's quotas."""

    used: float
    bound: int | None = None
    """None: as much as there is."""
    expected: float = 0.0
    """Of compute: what unfinished jobs will still take by their estimates; it counts against the bound."""


class Usage(Document):
    """What the workspace uses, beside what it may."""

    queued_jobs: Quota
    running_jobs: Quota
    compute_seconds: Quota
    """Of the last 24 hours."""
    stored_bytes: Quota


ItemT = TypeVar("ItemT")


class Page(Document, Generic[ItemT]):
    data: list[ItemT]
    next_cursor: str | None = None
