"""The examples that the API's reference shows."""

from __future__ import annotations

from typing import Any, Final

from service.jobs.estimate import BASIS

JOB_ID: Final = "0199aa10-7c1e-7d58-8d2a-9a4f0c5b1e22"
DATASET_ID: Final = "0199aa0f-1b2c-7e3d-9f40-51627384a5b6"
WORKER_ID: Final = "0199aa0e-0a1b-7c2d-8e3f-405162738495"
ADAPTATION_ID: Final = "0199aa12-3d4e-7f50-9a6b-7c8d9eafb0c1"
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
    "study_id": None,
    "cell": None,
    "created_at": "2026-01-15T12:00:00.000000Z",
    "started_at": "2026-01-15T12:00:00.040000Z",
    "ended_at": None,
    "links": {
        "self": f"/v1/jobs/{JOB_ID}",
        "events": f"/v1/jobs/{JOB_ID}/events",
        "metrics": f"/v1/jobs/{JOB_ID}/metrics",
        "evaluations": f"/v1/jobs/{JOB_ID}/evaluations",
        "attempts": f"/v1/jobs/{JOB_ID}/attempts",
        "checkpoints": f"/v1/jobs/{JOB_ID}/checkpoints",
        "initialization": f"/v1/jobs/{JOB_ID}/initialization",
    },
}

STUDY_ID: Final = "0199aa0c-2233-7445-8667-8899aabbccdd"

NEW_STUDY: Final[dict[str, Any]] = {
    "name": "methods on CosMixture",
    "base": {"family": {"kind": "cosmixture", "dim": 1}, "meta": {"iterations": 500}, "trajectory": {"length": 2.0}},
    "grid": {"/method/kind": ["amaml", "reptile"], "/runtime/seed": [0, 1, 2]},
    "concurrency": 2,
}

STUDY: Final[dict[str, Any]] = {
    "id": STUDY_ID,
    "name": "methods on CosMixture",
    "state": "running",
    "concurrency": 2,
    "cells": 6,
    "states": {"queued": 3, "running": 2, "succeeded": 1},
    "progress": {"iteration": 740, "iterations": 3_000},
    "base": NEW_STUDY["base"],
    "grid": NEW_STUDY["grid"],
    "created_at": "2026-01-15T12:00:00.000000Z",
    "ended_at": None,
    "links": {
        "self": f"/v1/studies/{STUDY_ID}",
        "report": f"/v1/studies/{STUDY_ID}/report",
        "jobs": f"/v1/jobs?study={STUDY_ID}",
    },
}

STUDY_DETAIL: Final[dict[str, Any]] = {
    **STUDY,
    "jobs": [
        {
            "cell": {"/method/kind": "amaml", "/runtime/seed": 0},
            "job_id": JOB_ID,
            "state": "running",
            "status_reason": None,
            "status_detail": None,
            "progress": {"iteration": 120, "iterations": 500},
            "metrics": {"meta_loss": 0.31},
        }
    ],
}

STUDY_REPORT: Final[dict[str, Any]] = {
    "id": STUDY_ID,
    "name": "methods on CosMixture",
    "state": "running",
    "created_at": "2026-01-15T12:00:00.000000Z",
    "ended_at": None,
    "states": {"queued": 3, "running": 2, "succeeded": 1},
    "score": "tuned",
    "axes": [
        {"pointer": "/method/kind", "name": "method.kind", "values": ["amaml", "reptile"]},
        {"pointer": "/runtime/seed", "name": "runtime.seed", "values": [0, 1, 2]},
    ],
    "blocks": [
        {
            "coordinates": {},
            "metric": "nrmse",
            "higher_is_better": False,
            "rows": [
                {
                    "coordinates": {"/method/kind": "amaml"},
                    "jobs": [{"job_id": JOB_ID, "seed": 0, "state": "succeeded", "score": 0.28}],
                    "scored": 1,
                    "score": {"mean": 0.28, "error": 0.012, "over": "tasks"},
                    "also": {"flow": {"mean": 0.33, "error": 0.02, "over": "tasks"}},
                    "best": True,
                    "difference": None,
                    "p_value": None,
                    "pairs": 0,
                    "seconds": 0.019,
                    "memory_bytes": 18_000_000,
                    "curve": {"epochs": [0, 10], "mean": [0.9, 0.28], "error": [0.05, 0.012]},
                }
            ],
        }
    ],
    "without_result": [
        {
            "coordinates": {"/method/kind": "reptile", "/runtime/seed": 0},
            "job_id": JOB_ID,
            "state": "queued",
            "status_reason": "study_turn",
            "status_detail": "It starts when another job of its study has ended: the study runs no more at once.",
            "iteration": 0,
            "iterations": 500,
        }
    ],
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

EVALUATION: Final[dict[str, Any]] = {
    "step": 500,
    "metric": "nrmse",
    "higher_is_better": False,
    "scores": {"flow": [0.31, 0.42], "tuned": [0.28, 0.36], "tuned_best": [0.28, 0.35], "random": [0.71, 0.69]},
    "curve": {"epochs": [0, 10, 20], "mean": [0.9, 0.45, 0.32], "error": [0.05, 0.03, 0.04]},
    "along_flow": {
        "times": [0.0, 0.5, 1.0, 1.5, 3.0, 4.0],
        "mean": [0.9, 0.6, 0.5, 0.4, 0.36, 0.35],
        "error": [0.05, 0.05, 0.04, 0.04, 0.05, 0.06],
        "trouble": None,
    },
}

METRICS: Final[dict[str, Any]] = {"meta_loss": [[1, 0.97], [2, 0.94]], "nrmse_tuned": [[100, 0.38]]}

DATASET: Final[dict[str, Any]] = {
    "id": DATASET_ID,
    "name": "MovieLens-100K",
    "version": 1,
    "format": "movielens-100k",
    "families": ["ratings"],
    "sha256": SHA256,
    "bytes": 1_979_173,
    "rows": 100_000,
    "tasks": 943,
    "state": "ready",
    "status_detail": None,
    "created_at": "2026-01-15T11:59:00.000000Z",
    "checked_at": "2026-01-15T11:59:01.200000Z",
    "links": {"self": f"/v1/datasets/{DATASET_ID}", "content": f"/v1/datasets/{DATASET_ID}/content"},
}

DATASET_REPORT: Final[dict[str, Any]] = {
    **DATASET,
    "report": {"rows": 100_000, "tasks": 943, "columns": [], "images": None, "errors": []},
}

DATASET_PENDING: Final[dict[str, Any]] = {
    **DATASET, "rows": None, "tasks": None, "state": "pending", "checked_at": None, "report": None,
}  # fmt: skip

WORKER: Final[dict[str, Any]] = {
    "id": WORKER_ID,
    "host": "gpu-3",
    "devices": ["cpu", "cuda"],
    "gpu": {
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 84_987_740_160,
        "uuid": "GPU-8f3c2a1e-6b4d-4f0a-9c77-2d1e5b6a7c80",
    },
    "lives": True,
    "started_at": "2026-01-15T11:00:00.000000Z",
    "seen_at": "2026-01-15T12:00:01.000000Z",
}

API_KEY: Final[dict[str, Any]] = {
    "id": KEY_ID,
    "name": "notebook",
    "prefix": "amaml_3f9a1c",
    "scopes": ["jobs:*", "datasets:read"],
    "created_at": "2026-01-15T11:00:00.000000Z",
    "last_used_at": None,
    "expires_at": "2027-01-15T00:00:00Z",
    "revoked_at": None,
}

ADAPTATION_REQUEST: Final[dict[str, Any]] = {
    "support": {"x": [[-0.5, 0.1], [0.0, 0.3], [0.4, -0.2]], "y": [0.31, -0.62, 0.15]},
    "query": {"x": [[0.2, 0.2], [0.6, 0.0]]},
    "by": "flow",
    "return": ["predictions", "curve", "weights"],
}

ADAPTATION_QUEUED: Final[dict[str, Any]] = {
    "id": ADAPTATION_ID,
    "job_id": JOB_ID,
    "by": "flow",
    "state": "queued",
    "status_reason": None,
    "status_detail": None,
    "weights": None,
    "created_at": "2026-01-15T12:30:00.000000Z",
    "started_at": None,
    "ended_at": None,
    "links": {
        "self": f"/v1/adaptations/{ADAPTATION_ID}",
        "job": f"/v1/jobs/{JOB_ID}",
        "weights": f"/v1/adaptations/{ADAPTATION_ID}/weights",
    },
    "result": None,
}

ADAPTATION: Final[dict[str, Any]] = {
    **ADAPTATION_QUEUED,
    "state": "succeeded",
    "weights": {"sha256": SHA256, "size_bytes": 6_480},
    "started_at": "2026-01-15T12:30:00.010000Z",
    "ended_at": "2026-01-15T12:30:00.090000Z",
    "result": {
        "outputs": ["y"],
        "predictions": [[-0.11], [0.42]],
        "curve": {"over": "t", "at": [0.0, 1.0, 2.0], "support": [0.48, 0.06, 0.01], "query": None},
    },
}

ADAPTATION_LISTED: Final[dict[str, Any]] = {name: value for name, value in ADAPTATION.items() if name != "result"}


USAGE: Final[dict[str, Any]] = {
    "queued_jobs": {"used": 12, "bound": 10_000},
    "running_jobs": {"used": 2, "bound": None},
    "compute_seconds": {"used": 5_400.5, "bound": 2_592_000, "expected": 1_830.0},
    "stored_bytes": {"used": 1_979_173, "bound": 107_374_182_400},
}

NEW_API_KEY: Final[dict[str, Any]] = {
    "name": "notebook",
    "scopes": ["jobs:*", "datasets:read"],
    "expires_at": "2099-01-15T00:00:00Z",
}


WEBHOOK_ID: Final = "0199aa0c-2233-7445-8667-788990a0b1c2"
DELIVERY_ID: Final = "0199aa11-3344-7556-8778-899aa0b1c2d3"

NEW_WEBHOOK: Final[dict[str, Any]] = {
    "url": "https://hooks.example.org/amaml",
    "events": ["job.succeeded", "job.failed"],
    "signature": "hmac",
    "description": "tells the team",
}
WEBHOOK_CHANGE: Final[dict[str, Any]] = {"events": ["job.failed"], "enabled": True}
WEBHOOK: Final[dict[str, Any]] = {
    "id": WEBHOOK_ID,
    **NEW_WEBHOOK,
    "public_key": None,
    "previous_secret_until": None,
    "enabled": True,
    "disabled_reason": None,
    "failures": 0,
    "failing_since": None,
    "created_at": "2026-01-15T11:00:00.000000Z",
    "links": {"self": f"/v1/webhooks/{WEBHOOK_ID}", "deliveries": f"/v1/webhooks/{WEBHOOK_ID}/deliveries"},
}
WEBHOOK_WITH_SECRET: Final[dict[str, Any]] = {**WEBHOOK, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}

DELIVERY: Final[dict[str, Any]] = {
    "id": DELIVERY_ID,
    "type": "job.succeeded",
    "state": "succeeded",
    "attempts": [
        {
            "number": 1,
            "started_at": "2026-01-15T12:01:30.120000Z",
            "seconds": 0.084,
            "status": 204,
            "error": None,
            "response": "",
        }
    ],
    "next_attempt_at": None,
    "created_at": "2026-01-15T12:01:30.000000Z",
    "ended_at": "2026-01-15T12:01:30.210000Z",
    "links": {"self": f"/v1/webhooks/{WEBHOOK_ID}/deliveries/{DELIVERY_ID}"},
}
DELIVERY_WITH_BODY: Final[dict[str, Any]] = {
    **DELIVERY, "body": '{"type": "job.succeeded", "timestamp": "2026-01-15T12:01:30.000000Z", "data": {"id": "…"}}'
}  # fmt: skip
DELIVERY_PENDING: Final[dict[str, Any]] = {
    **DELIVERY_WITH_BODY, "state": "pending", "attempts": [], "next_attempt_at": DELIVERY["created_at"], "ended_at": None,
}  # fmt: skip


def page(item: Any) -> dict[str, Any]:
    return {"data": [item], "next_cursor": None}
