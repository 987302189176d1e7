"""The life of a delivery: one message to one webhook."""

from __future__ import annotations

from typing import Final

from service.core.transitions import Transitions

DELIVERY: Final = Transitions(
    "delivery",
    "pending",
    {
        ("pending", "succeeded"): "the receiver took it",
        ("pending", "failed"): "its attempts are used up, or its webhook is disabled",
        ("succeeded", "pending"): "requested again",
        ("failed", "pending"): "requested again",
    },
    final=("succeeded", "failed"),
    outcome=("ended_at", "attempt"),
)
