"""What supervisor and trainer, and worker and adapter, say to each other: one JSON object a line, over the child's stdin
and stdout.

The supervisor speaks `Run`, `Lease`, `Stop`; the trainer speaks the rest. Bytes that are large (data sets,
checkpoints, initializations) go by files in the run's folder, named here, never through the pipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

EXIT_OUT_OF_MEMORY = 71
"""The trainer's exit status when an allocation failed: unlike a `Failed` run, it may well work elsewhere or later."""
EXIT_NOT_TRUSTED = 72
"""The trainer's exit status when its deadline passed or its supervisor went away."""


class Message(BaseModel):
    # JSON knows no NaN and no infinity, and metrics may be either: they travel as strings.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


# Supervisor → trainer


class Run(Message):
    """Start this job; a warm trainer has been waiting for it. It takes the next after it has said how this one ended."""

    kind: Literal["run"] = "run"
    job_id: str
    attempt: int
    spec: str
    """The JobSpec as JSON; the trainer says what is wrong with it, if it can't run."""
    datasets: dict[str, str]
    """Data set id → path."""
    initialization: str | None = None
    """Path of the safetensors file that θ starts from."""
    checkpoint: str | None = None
    """Path of the checkpoint that the run resumes from."""
    folder: str
    """Where the trainer puts its files."""
    device: Literal["cpu", "cuda"]
    """The device to use: a resumed run gets the kind of device that its first attempt had."""
    threads: int
    """Of the numerical libraries. Bits depend on it, so a resumed run gets as many as the first attempt had."""
    deadline: float
    """As `Lease.deadline`."""


class Lease(Message):
    """The lease was renewed. The trainer ends itself when `time.monotonic()` passes it, or the pipe closes."""

    kind: Literal["lease"] = "lease"
    deadline: float
    """CLOCK_MONOTONIC seconds, counted from the start of the renewal call; the clock is one for the whole machine."""


class Stop(Message):
    """End at the next iteration; with `checkpoint`, write one first."""

    kind: Literal["stop"] = "stop"
    checkpoint: bool


# Trainer → supervisor


class Gpu(Message):
    """The GPU that a process computes on: the first that it sees."""

    name: str
    """The model, as CUDA calls it."""
    memory_bytes: int
    uuid: str
    others: int = 0
    """How many further GPUs the process sees and doesn't use."""


class Ready(Message):
    """The child has imported everything and waits for work. It is sent again after each piece of work, so that no work is given
    to a child that is ending."""

    kind: Literal["ready"] = "ready"
    versions: dict[str, str]
    devices: list[Literal["cpu", "cuda"]]
    gpu: Gpu | None = None


class AlongFlow(Message):
    times: list[float]
    mean: list[float]
    error: list[float]
    trouble: str | None


class Evaluated(Message):
    """What an evaluation found."""

    step: int
    metric: str
    higher_is_better: bool
    scores: dict[str, list[float]]
    """How the tasks were adapted → a score a task, in the same order."""
    curve: dict[str, list[float]]
    """`epochs`, and `mean` and `error` over tasks after each."""
    along_flow: AlongFlow | None


class ProgressReport(Message):
    """The run has made progress. Metric points are those since the last message."""

    kind: Literal["progress"] = "progress"
    phase: str
    iteration: int
    iterations: int
    eta_seconds: float | None
    metrics: dict[str, list[tuple[int, float]]] = {}
    evaluations: list[Evaluated] = []
    """Since the last message."""


class Checkpoint(Message):
    """A checkpoint lies in this file. The supervisor removes the file once it is committed; until then the trainer
    writes no other."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str


class Succeeded(Message):
    kind: Literal["succeeded"] = "succeeded"
    path: str
    parameters: int
    iteration: int
    """Meta-iterations that were done."""
    reason: str | None = None
    """Why it ended before the last one, as a machine word; None where it didn't."""
    detail: str | None = None
    """The same, as a sentence."""


class Stopped(Message):
    """The run ended because it was asked to stop."""

    kind: Literal["stopped"] = "stopped"
    step: int


FailureReason = Literal[
    "bad_spec",
    "bad_data",
    "checkpoint_refused",
    "diverged",
    "solver_failed",
    "certificate_failed",
    "out_of_memory",
    "timed_out",
    "error",
]


class Accident(Message):
    """The machine failed (a full disk, a file that can't be read): the work may well succeed elsewhere or later. Whoever
    started the child kills it, since the cause may be its own state."""

    kind: Literal["accident"] = "accident"
    detail: str
    """What happened, as a sentence without its full stop."""


class Failed(Message):
    """The run itself failed: trying again would fail again."""

    kind: Literal["failed"] = "failed"
    reason: FailureReason
    detail: str


# Worker → adapter


class Adapt(Message):
    """Adapt this initialization as the request asks."""

    kind: Literal["adapt"] = "adapt"
    adaptation_id: str
    request: str
    """Path of the amaml.adaptation_request.AdaptationRequest, as JSON."""
    initialization: str
    """Path of the safetensors file, of whose content its name holds the hash."""
    folder: str
    """Where the adapter puts its files."""
    threads: int


# Adapter → worker, beside `Ready`


class Adapted(Message):
    kind: Literal["adapted"] = "adapted"
    result: str
    """Path of the amaml.adaptation_request.AdaptationResult, as JSON."""
    weights: str | None
    """Path of the adapted weights, where they were asked for."""


class NotAdapted(Message):
    """The adaptation can't be done: trying again would fail again."""

    kind: Literal["not_adapted"] = "not_adapted"
    reason: Literal[
        "solver_failed", "diverged", "bad_rows", "bad_initialization", "out_of_memory", "timed_out", "error"
    ]
    detail: str


ToTrainer = Run | Lease | Stop
FromTrainer = Ready | ProgressReport | Checkpoint | Succeeded | Stopped | Failed | Accident

FromAdapter = Ready | Adapted | NotAdapted | Accident

_to_trainer: TypeAdapter[ToTrainer] = TypeAdapter(Annotated[ToTrainer, Field(discriminator="kind")])
_from_trainer: TypeAdapter[FromTrainer] = TypeAdapter(Annotated[FromTrainer, Field(discriminator="kind")])
_from_adapter: TypeAdapter[FromAdapter] = TypeAdapter(Annotated[FromAdapter, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """One line, newline included."""
    return message.model_dump_json().encode() + b"\n"


def to_trainer(line: bytes) -> ToTrainer:
    """The supervisor's message on this line; raises pydantic.ValidationError."""
    return _to_trainer.validate_json(line)


def from_trainer(line: bytes) -> FromTrainer:
    """The trainer's message on this line; raises pydantic.ValidationError."""
    return _from_trainer.validate_json(line)


def to_adapter(line: bytes) -> Adapt:
    """The worker's message on this line; raises pydantic.ValidationError."""
    return Adapt.model_validate_json(line)


def from_adapter(line: bytes) -> FromAdapter:
    """The adapter's message on this line; raises pydantic.ValidationError."""
    return _from_adapter.validate_json(line)
