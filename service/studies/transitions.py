"""The life of a study, which is that of its jobs taken together."""

from __future__ import annotations

from typing import Final

from service.core.transitions import Transitions

STUDY: Final = Transitions(
    "study",
    "running",
    {
        ("running", "cancelling"): "cancel requested",
        ("running", "finished"): "all of its jobs have ended",
        ("cancelling", "cancelled"): "all of its jobs have ended",
    },
    final=("finished", "cancelled"),
    outcome=("ended_at",),
    fenced=False,
)
