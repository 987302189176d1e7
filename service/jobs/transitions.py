"""The life of a job: every state, and every legal step from one to another with the word for it.

This table is the one place where a transition is allowed; the repositories ask it before they write.
"""

from __future__ import annotations

from typing import Final, Literal

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
    ("running", "pausing"): "pause asked for",
    ("running", "cancelling"): "cancel asked for",
    ("running", "succeeded"): "trainer finished",
    ("running", "failed"): "trainer failed, or attempts used up",
    ("pausing", "paused"): "trainer stopped at a checkpoint",
    ("pausing", "cancelling"): "cancel asked for",
    ("pausing", "succeeded"): "trainer finished first",
    ("pausing", "failed"): "trainer failed first",
    ("paused", "queued"): "resumed",
    ("succeeded", "queued"): "extended to more meta-iterations",
    ("paused", "cancelled"): "cancelled while paused",
    ("cancelling", "cancelled"): "trainer stopped, or its lease lapsed",
    ("cancelling", "succeeded"): "trainer finished first",
    ("cancelling", "failed"): "trainer failed first",
}


class IllegalTransition(Exception):
    """A step that the table above doesn't have."""

    def __init__(self, source: State, target: State) -> None:
        super().__init__(f"a job that is {source} can't become {target}")
        self.source, self.target = source, target


def check(source: State, target: State) -> None:
    """Raises IllegalTransition unless the table has the step."""
    if (source, target) not in TRANSITIONS:
        raise IllegalTransition(source, target)
