"""A small job for every method, family and architecture that a job can name, and one of several phases.

The lists come from the registry, so a new one is among the cases as soon as it is there, or fails here for want of a data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from amaml.spec import JobSpec, families, methods, models

PLAIN = {"kind": "euler", "step": 0.1}
MAML = {"solver": PLAIN}
METHODS: dict[str, list[dict[str, Any]]] = {
    "amaml": [
        {},
        {"method": {"adjoint": {"kind": "discrete", "checkpoints": 3}}},
        {"method": {"adjoint": {"kind": "interpolated"}}},
        {"method": {"adjoint": {"kind": "backsolve"}}},
        {"method": {"learn": ["length", "rates", "proximal"], "proximal": 0.1}},
        {"solver": {"kind": "midpoint", "step": 0.1}},
    ],
    "maml": [MAML],
    "maml1": [MAML],
}
"""Method → what is set beside its defaults, a case each."""
MODELS: dict[str, dict[str, Any]] = {
    "conv4": {
        "model": {"kind": "conv4", "filters": 4},
        "family": "images",
        "trajectory": {"length": 0.1},
        "solver": {"kind": "euler", "step": 0.025, "guard": False},
    }
}
"""Architecture → a small one, and what it needs of the job; its traced derivatives take their time."""
PHASES: list[dict[str, Any]] = [
    {"method": {"kind": "reptile"}, "share": 0.3, "solver": PLAIN},
    {"method": {"kind": "amaml", "learn": ["rates"]}, "share": 0.35, "clip": {"window": 8}},
    {"method": {"kind": "comln"}, "share": 0.35, "optimizer": {"kind": "adamw", "warmup": 3}},
]
SMALL = {"shots": 5, "queries": 5, "test_tasks": 2, "train_tasks": 6, "dim": 1, "items": 12}
"""Of these a family's spec takes those that it has."""
RATINGS = b"user,item,rating\n" + b"".join(
    f"u{user},i{item},{1 + (user * 7 + item * 3) % 5}\n".encode() for user in range(20) for item in range(12)
)
TABLE = b"sensor,place,reading\n" + b"".join(
    f"s{sensor},{row % 7},{(sensor * 5 + row * 3) % 11}\n".encode() for sensor in range(60) for row in range(12)
)
LABELS = np.arange(120) % 12
PICTURES = save(
    {"images": ((LABELS[:, None, None] + np.arange(16).reshape(4, 4)) % 5).astype(np.uint8), "labels": LABELS}
)
OWN: dict[str, dict[str, Any]] = {"table": {"task": "sensor", "inputs": ["place"], "targets": ["reading"]}}
"""Family → fields beside the small ones."""
BESIDE: dict[str, dict[str, Any]] = {"poisson": {"solver": PLAIN}}
"""Family → what is set beside it: the residual's derivatives take their time."""
FILES = {"ratings": RATINGS, "table": TABLE, "images": PICTURES}
"""Family → what it reads."""


@dataclass(frozen=True)
class Case:
    name: str
    changes: dict[str, Any]


def cases() -> list[Case]:
    by_method = [
        Case(f"{kind}-{number}" if number else kind, {**change, "method": {"kind": kind, **change.get("method", {})}})
        for kind in methods()
        if kind != "random"  # it trains nothing
        for number, change in enumerate(METHODS.get(kind, [{}]))
    ]
    by_family = [
        Case(kind, {**BESIDE.get(kind, {}), "family": kind})
        for kind in families()
        if kind != "sinusoid"  # in the methods
    ]
    by_model = [Case(kind, MODELS[kind]) for kind in models() if kind != "mlp"]
    return [*by_method, *by_family, *by_model, Case("phases", {"meta": {"average": 0.9, "phases": PHASES}})]


def job(case: Case, iterations: int, checkpoint_every: int, upload: Callable[[bytes], str]) -> JobSpec:
    """A job of the case; `upload` gives the id of a data set with that content, where the family reads one."""
    kind = case.changes.get("family", "sinusoid")
    fields = families()[kind].model_fields
    family = {"kind": kind, **{name: value for name, value in SMALL.items() if name in fields}, **OWN.get(kind, {})}
    if "dataset" in fields and "dataset" not in family:
        assert kind in FILES, f"family {kind} reads a data set: give it one here"
        family["dataset"] = upload(FILES[kind])
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "model": {"kind": "mlp", "hidden": [8]},
                "trajectory": {"length": 0.4},
                "solver": {"kind": "dopri5", "rtol": 1e-4, "atol": 1e-4},
                "evaluation": {"every": iterations // 2, "tasks": 2, "epochs": 5},
                **case.changes,
                "meta": {"iterations": iterations, "tasks_per_batch": 2, **case.changes.get("meta", {})},
                "family": family,
                "runtime": {"threads": 1, "checkpoint_every": checkpoint_every, "max_attempts": 100},
            }
        )
    )
