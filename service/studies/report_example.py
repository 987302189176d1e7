"""The report that the API's reference shows."""

from __future__ import annotations

from typing import Any, Final

from service.http.examples import JOB_ID, STUDY_ID

REPORT_EXAMPLE: Final[dict[str, Any]] = {
    "id": str(STUDY_ID),
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
                    "jobs": [{"job_id": str(JOB_ID), "seed": 0, "state": "succeeded", "score": 0.28}],
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
            "job_id": str(JOB_ID),
            "state": "queued",
            "status_reason": "study_turn",
            "status_detail": "It starts when another job of its study has ended: the study runs no more at once.",
            "iteration": 0,
            "iterations": 500,
        }
    ],
}
