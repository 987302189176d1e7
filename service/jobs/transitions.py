"""The life of a job."""

from __future__ import annotations

from typing import Final, Literal

from service.core.transitions import Transitions

State = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]

STATES: Final[tuple[State, ...]] = (
    "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled",
)  # fmt: skip
FINAL: Final[frozenset[State]] = frozenset({"succeeded", "failed", "cancelled"})
LEASED: Final[frozenset[State]] = frozenset({"running", "pausing", "cancelling"})

TRANSITIONS: Final[dict[tuple[State, State], str]] = {
    ("queued", "running"): "claimed by a worker",
    ("queued", "paused"): "paused before it started",
    ("queued", "cancelled"): "cancelled before it started",
    ("running", "queued"): "worker lost, crashed or shut down: back to the queue",
    ("running", "pausing"): "pause requested",
    ("running", "cancelling"): "cancel requested",
    ("running", "succeeded"): "trainer finished",
    ("running", "failed"): "trainer failed, or attempts used up",
    ("pausing", "paused"): "trainer stopped at a checkpoint",
    ("pausing", "cancelling"): "cancel requested",
    ("pausing", "succeeded"): "trainer finished first",
    ("pausing", "failed"): "trainer failed first",
    ("paused", "queued"): "resumed",
    ("succeeded", "queued"): "extended to more meta-iterations",
    ("paused", "cancelled"): "cancelled while paused",
    ("cancelling", "cancelled"): "trainer stopped, or its lease lapsed",
    ("cancelling", "succeeded"): "trainer finished first",
    ("cancelling", "failed"): "trainer failed first",
}

JOB: Final = Transitions(
    "job",
    "queued",
    TRANSITIONS,
    final=tuple(state for state in STATES if state in FINAL),
    outcome=("initialization_blob_id", "ended_at", "attempt"),
)
