"""Families of a user's own data through the API's store and a real worker: a table, uploaded, checked and learnt from."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from safetensors.numpy import save

from amaml.dataset_format import detect
from amaml.families.upload import HEAD_BYTES
from amaml.spec import JobSpec
from service.core import blobs
from service.core.database import transaction
from service.datasets import store as datasets
from service.jobs import store as jobs
from tests.support.jobs import metrics_of, result_of, wait_for
from tests.support.jobs import workspace as default_workspace
from tests.support.workers import Workers

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def workspace(workers: Workers) -> UUID:
    workers.start().wait_until_ready()
    return default_workspace()


def table() -> bytes:
    """Each sensor's reading is a line of its own in the temperature."""
    random = np.random.default_rng(0)
    lines = ["sensor,temperature,place,reading"]
    for sensor in range(60):
        slope, rows = random.normal(1, 1), 20 if sensor else 3
        for row in range(rows):
            at = random.uniform(0, 30)
            lines.append(f"s{sensor},{at:.3f},{'in' if row % 2 else 'out'},{50 + slope * at:.4f}")
    return "\n".join(lines).encode() + b"\n"


def pictures() -> bytes:
    labels = np.arange(120) % 12
    images = np.random.default_rng(0).integers(0, 9, (120, 6, 6), dtype=np.uint8) + 20 * labels[:, None, None].astype(
        np.uint8
    )
    return save({"images": images, "labels": labels})


def upload(workspace_id: UUID, data: bytes, name: str) -> UUID:
    """As the API does; the worker then checks it."""
    stored = blobs.write([data])
    detected = detect(data[:HEAD_BYTES], whole=len(data) <= HEAD_BYTES)
    with transaction() as session:
        return datasets.add(session, workspace_id, stored, detected, name).dataset.id


def submit(workspace_id: UUID, family: dict[str, Any], step: float = 0.1) -> UUID:
    """Ten steps a task."""
    spec = {
        "family": family,
        "model": {"hidden": [16]},
        "trajectory": {"length": 10 * step},
        "solver": {"kind": "euler", "step": step},
        "meta": {"iterations": 60, "tasks_per_batch": 8, "optimizer": {"lr": 0.01}},
        "evaluation": {"every": 1000, "tasks": 20, "epochs": 10},
        "runtime": {"threads": 1},
    }
    with transaction() as session:
        return jobs.submit(session, workspace_id, JobSpec.model_validate_json(json.dumps(spec))).id


def test_a_table_is_learnt_from_by_its_id(workspace: UUID) -> None:
    dataset = upload(workspace, table(), "sensors")
    columns = {"task": "sensor", "inputs": ["temperature", "place"], "targets": ["reading"]}
    job_id = submit(workspace, {"kind": "table", "dataset": str(dataset), **columns, "shots": 5, "queries": 10})
    wait_for(job_id, "succeeded")
    metrics = metrics_of(job_id)
    assert metrics["nrmse_flow"][60] < 0.7 * metrics["nrmse_pooled_linear"][60]
    assert metrics["tasks_left_out"] == {0: 1.0}
    assert sum(metrics[f"tasks_{part}"][0] for part in ("train", "validation", "test")) == 59
    result = result_of(job_id)
    assert json.loads(result["inputs"]) == ["temperature", "place=in", "place=out"]
    assert json.loads(result["outputs"]) == ["reading"]


def test_a_column_that_is_not_there_fails_the_job_with_a_sentence(workspace: UUID) -> None:
    dataset = upload(workspace, table(), "sensors")
    columns = {"task": "device", "inputs": ["temperature"], "targets": ["reading"]}
    job = wait_for(submit(workspace, {"kind": "table", "dataset": str(dataset), **columns}), "failed")
    assert job.status_reason == "bad_data"
    assert "no column 'device'" in (job.status_detail or "")


def test_uploaded_images_and_the_digits_that_come_with_the_service(workspace: UUID) -> None:
    dataset = upload(workspace, pictures(), "squares")
    own = {"kind": "images", "ways": 2, "shots": 5, "queries": 5}
    uploaded = submit(workspace, {**own, "dataset": str(dataset)}, step=0.01)
    digits = submit(workspace, {**own, "dataset": "digits"}, step=0.01)
    for job_id, picture in ((uploaded, [1, 6, 6]), (digits, [1, 8, 8])):
        wait_for(job_id, "succeeded")
        assert json.loads(result_of(job_id)["picture"]) == picture
        assert metrics_of(job_id)["accuracy_flow"][60] > 0.6  # chance is a half
