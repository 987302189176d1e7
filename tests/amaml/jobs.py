"""Small jobs, shared by the tests of the training loop."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from amaml.models.mlp import build
from amaml.run.training import Report
from amaml.spec import JobSpec, MLPSpec

METHODS: list[dict[str, Any]] = [
    {"kind": "maml"},
    {"kind": "maml", "steps": 3},
    {"kind": "maml1"},
    {"kind": "fomaml"},
    {"kind": "reptile"},
    {"kind": "imaml", "proximal": 2.0, "cg_steps": 3},
]
"""The methods other than amaml, each with fixed steps."""


def name_of(method: dict[str, Any]) -> str:
    """The id of a test's case."""
    return "-".join(str(value) for value in method.values())


def small(**changes: dict[str, Any]) -> JobSpec:
    """A sinusoid job that takes a second; `changes` are merged into the parts that they name."""
    parts: dict[str, dict[str, Any]] = {
        "family": {"kind": "sinusoid", "shots": 5, "queries": 5, "test_tasks": 4},
        "model": {"kind": "mlp", "hidden": [8]},
        "trajectory": {"length": 0.5},
        "solver": {"kind": "euler", "step": 0.1},
        "meta": {"iterations": 20, "tasks_per_batch": 3},
        "evaluation": {"every": 10, "tasks": 4, "epochs": 20},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    for name, change in changes.items():
        parts[name] = {**parts.get(name, {}), **change}
    return JobSpec.model_validate_json(json.dumps(parts))


def frozen_first_layer(spec: MLPSpec, in_features: int, out_features: int) -> nn.Module:
    """A network whose first layer is frozen: for MLPSpec.implementation."""
    net = build(spec, in_features=in_features, out_features=out_features)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith("0."))
    return net


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bits(reports: list[Report]) -> list[tuple[int, dict[str, float]]]:
    """All metrics of a run that aren't wall-clock times."""
    return [
        (report.iteration, {name: value for name, value in report.metrics.items() if name != "seconds"})
        for report in reports
        if report.metrics
    ]
