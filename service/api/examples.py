"""The examples that the API's reference shows."""

from __future__ import annotations

from typing import Any, Final

from service.estimate import BASIS

JOB_ID: Final = "0199aa10-7c1e-7d58-8d2a-9a4f0c5b1e22"
DATASET_ID: Final = "0199aa0f-1b2c-7e3d-9f40-51627384a5b6"
WORKER_ID: Final = "0199aa0e-0a1b-7c2d-8e3f-405162738495"
KEY_ID: Final = "0199aa0d-1122-7334-8556-677889900aab"
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

SPEC: Final[dict[str, Any]] = {
    "name": "cosmixture, 100 shots",
    "tags": {"paper": "table-1"},
    "family": {"kind": "cosmixture", "dim": 2, "shots": 100},
    "trajectory": {"length": 2.0},
    "meta": {"iterations": 500},
}

JOB: Final[dict[str, Any]] = {
    "id": JOB_ID,
    "name": "cosmixture, 100 shots",
    "tags": {"paper": "table-1"},
    "state": "running",
    "phase": "training",
    "progress": {"iteration": 120, "iterations": 500, "eta_seconds": 41.5},
    "status_reason": None,
    "status_detail": None,
    "spec": SPEC,
    "metrics": {"meta_loss": 0.31, "gradient_norm": 0.052},
    "initialization": None,
    "attempt": 1,
    "created_at": "2026-01-15T12:00:00.000000Z",
    "started_at": "2026-01-15T12:00:00.040000Z",
    "ended_at": None,
    "links": {
        "self": f"/v1/jobs/{JOB_ID}",
        "events": f"/v1/jobs/{JOB_ID}/events",
        "metrics": f"/v1/jobs/{JOB_ID}/metrics",
        "attempts": f"/v1/jobs/{JOB_ID}/attempts",
        "checkpoints": f"/v1/jobs/{JOB_ID}/checkpoints",
        "initialization": f"/v1/jobs/{JOB_ID}/initialization",
    },
}

DRY_RUN: Final[dict[str, Any]] = {
    "spec": SPEC,
    "estimate": {
        "parameters": 1_185,
        "gradients": 1_336_000,
        "hvps": 1_640_000,
        "seconds": 168.5,
        "memory_bytes": 452_000_000,
        "basis": BASIS,
    },
}

EVENT: Final[dict[str, Any]] = {
    "seq": 2,
    "kind": "state",
    "data": {"state": "running", "from": "queued", "reason": None, "detail": None},
    "created_at": "2026-01-15T12:00:00.040000Z",
}

ATTEMPT: Final[dict[str, Any]] = {
    "number": 1,
    "worker_id": WORKER_ID,
    "host": "gpu-3",
    "started_at": "2026-01-15T12:00:00.040000Z",
    "ended_at": None,
    "reason": None,
    "detail": None,
}

CHECKPOINT: Final[dict[str, Any]] = {
    "step": 100,
    "attempt": 1,
    "sha256": SHA256,
    "size_bytes": 18_432,
    "created_at": "2026-01-15T12:00:30.000000Z",
    "links": {"self": f"/v1/jobs/{JOB_ID}/checkpoints/100"},
}

METRICS: Final[dict[str, Any]] = {"meta_loss": [[1, 0.97], [2, 0.94]], "nrmse_tuned": [[100, 0.38]]}

DATASET: Final[dict[str, Any]] = {
    "id": DATASET_ID,
    "name": "MovieLens-100K",
    "format": "movielens-100k",
    "sha256": SHA256,
    "bytes": 1_979_173,
    "rows": 100_000,
    "tasks": 943,
    "state": "ready",
    "created_at": "2026-01-15T11:59:00.000000Z",
}

WORKER: Final[dict[str, Any]] = {
    "id": WORKER_ID,
    "host": "gpu-3",
    "devices": ["cpu", "cuda"],
    "lives": True,
    "started_at": "2026-01-15T11:00:00.000000Z",
    "seen_at": "2026-01-15T12:00:01.000000Z",
}

API_KEY: Final[dict[str, Any]] = {
    "id": KEY_ID,
    "name": "notebook",
    "prefix": "amaml_3f9a1c",
    "created_at": "2026-01-15T11:00:00.000000Z",
    "last_used_at": None,
    "revoked_at": None,
}


def page(item: Any) -> dict[str, Any]:
    return {"data": [item], "next_cursor": None}
