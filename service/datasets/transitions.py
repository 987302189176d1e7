"""The life of a data set: until a worker has checked it, it is `pending`."""

from __future__ import annotations

from typing import Final

from service.core.transitions import Transitions

DATASET: Final = Transitions(
    "data set",
    "pending",
    {
        ("pending", "ready"): "its check found nothing wrong",
        ("pending", "invalid"): "its check found what is wrong, or came to no report",
        ("invalid", "pending"): "its check came to no report, and the same bytes were uploaded again",
    },
    final=("ready", "invalid"),
    outcome=("report", "rows", "tasks", "checked_at", "attempt"),
)
