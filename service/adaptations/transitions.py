"""The life of an adaptation."""

from __future__ import annotations

from typing import Final, Literal

from service.core.transitions import Transitions

State = Literal["queued", "running", "succeeded", "failed"]
ENDED: Final = ("succeeded", "failed")

ADAPTATION: Final = Transitions(
    "adaptation",
    "queued",
    {
        ("queued", "running"): "taken by a worker",
        ("running", "queued"): "worker lost, crashed or shut down: back to the queue",
        ("running", "succeeded"): "done",
        ("running", "failed"): "it can't be done, or its attempts are used up",
    },
    final=ENDED,
    outcome=("weights_blob_id", "ended_at", "attempt"),
)
