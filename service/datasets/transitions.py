"""The life of a data set: until a worker has checked it, it is `pending`."""

from __future__ import annotations

from typing import Final

from service.core.transitions import Transitions

DATASET: Final = Transitions(
    "data set",
    "pending",
    {
        ("pending", "ready"): "its check found no errors",
        ("pending", "invalid"): "its check found errors, or ended without a report",
        ("invalid", "pending"): "its check ended without a report, and the same bytes were uploaded again",
    },
    final=("ready", "invalid"),
    outcome=("report", "rows", "tasks", "checked_at", "attempt"),
)
