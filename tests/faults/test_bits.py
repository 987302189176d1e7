"""A job whose trainer and worker are killed again and again learns what an undisturbed one learns, to the bit.

For every method, family and architecture that a job can name: the lists come from the registry, so a new one is tested as
soon as it is there, or fails here for want of a data set.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import select

from amaml.dataset_format import detect
from amaml.spec import JobSpec, families, methods, models
from service.store import blobs, datasets
from service.store.database import transaction
from service.store.tables import Checkpoint, Dataset, Workspace
from service.store.transitions import FINAL
from tests.faults.audit import violations
from tests.worker.conftest import (
    WorkerProcess,
    Workers,
    events_of,
    is_gone,
    job_of,
    metrics_of,
    result_of,
    submit,
    wait_for,
    wait_until,
)

KILLS = ("trainer", "worker", "trainer", "worker", "trainer")
ITERATIONS = 48
CHECKPOINT_EVERY = 2
PACE_SECONDS = 0.04
"""An iteration takes at least that: time for a checkpoint, a random wait and a kill, over and over, in a job of seconds."""

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
    return by_method + by_family + by_model


def job(case: Case) -> JobSpec:
    """A job of some seconds, of the case's method and family."""
    kind = case.changes.get("family", "sinusoid")
    fields = families()[kind].model_fields
    family = {"kind": kind, **{name: value for name, value in SMALL.items() if name in fields}, **OWN.get(kind, {})}
    if "dataset" in fields and "dataset" not in family:
        assert kind in FILES, f"family {kind} reads a data set: give it one here"
        family["dataset"] = str(dataset(FILES[kind]))
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "model": {"kind": "mlp", "hidden": [8]},
                "trajectory": {"length": 0.4},
                "solver": {"kind": "dopri5", "rtol": 1e-4, "atol": 1e-4},
                "meta": {"iterations": ITERATIONS, "tasks_per_batch": 2},
                "evaluation": {"every": ITERATIONS // 2, "tasks": 2, "epochs": 5},
                **case.changes,
                "family": family,
                "runtime": {"threads": 1, "checkpoint_every": CHECKPOINT_EVERY, "max_attempts": 100},
            }
        )
    )


def dataset(content: bytes) -> UUID:
    """Uploaded, and checked by a worker."""
    with transaction() as session:
        workspace = session.scalars(select(Workspace)).first() or Workspace(name="default")
        session.add(workspace)
        session.flush()
        workspace_id = workspace.id
    written = blobs.write([content])
    with transaction() as session:
        dataset_id = datasets.add(session, workspace_id, written, detect(content, whole=True), "").dataset.id

    def state() -> str:
        with transaction() as session:
            return session.get_one(Dataset, dataset_id).state

    wait_until(lambda: state() != "pending")
    assert state() == "ready"
    return dataset_id


class Crew:
    """Two workers; one that was killed is replaced."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.members: list[WorkerProcess] = []
        self.mend()

    def mend(self) -> None:
        alive = [member for member in self.members if member.is_alive]
        pace = {"AMAML_FAILPOINT": f"trainer.reported=sleep:{PACE_SECONDS}@*", "AMAML_KERNEL": "on"}
        self.members = [*alive, *(self._workers.start(**pace) for _ in range(2 - len(alive)))]

    def kill(self, what: str, job_id: UUID, attempt: int) -> bool:
        """Whether there was one to kill that ran this attempt of the job, and it died of that."""
        for member in self.members:
            trainer = member.trainer_of(job_id, attempt)
            if trainer is None or not member.is_alive or is_gone(trainer):
                continue
            if what == "worker":
                member.signal(signal.SIGKILL)
                return member.wait() == -signal.SIGKILL
            os.kill(trainer, signal.SIGKILL)
            wait_until(lambda pid=trainer: is_gone(pid), 5)
            return True
        return False


@pytest.fixture(scope="module")
def crew(workers: Workers) -> Crew:
    crew = Crew(workers)
    for member in crew.members:
        member.wait_until_ready()
    return crew


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_job_killed_five_times_learns_the_same_bits(case: Case, crew: Crew) -> None:
    spec = job(case)
    expected = undisturbed(spec)
    job_id = submit(spec)
    chance = random.Random(case.name)  # noqa: S311 - accidents need not be unguessable
    killed = [0]
    for what in KILLS:
        crew.mend()
        attempt = wait_for_checkpoint(job_id, killed[-1])
        time.sleep(chance.uniform(0, 4 * PACE_SECONDS))
        assert crew.kill(what, job_id, attempt), f"attempt {attempt} had ended: the job is {job_of(job_id).state}"
        killed.append(attempt)
    wait_for(job_id, "succeeded", seconds=120)
    assert {attempt + 1 for attempt in killed[1:]} <= resumes(job_id), (
        "each kill was followed by an attempt from a checkpoint"
    )
    assert result_of(job_id)["tensors_sha256"] == result_of(expected)["tensors_sha256"]
    assert numbers(job_id) == numbers(expected)
    with transaction() as session:
        assert violations(session) == []


def undisturbed(spec: JobSpec) -> UUID:
    """Such a job that has succeeded at its first attempt."""
    for _ in range(3):  # on a busy machine a lease of two seconds may lapse by itself
        job_id = submit(spec)
        wait_for(job_id, "succeeded", seconds=120)
        if job_of(job_id).attempt == 1:
            return job_id
    pytest.fail("leases lapse though nothing was killed: the machine is too busy")


def wait_for_checkpoint(job_id: UUID, after: int) -> int:
    """Waits until an attempt after that one runs, and has committed a checkpoint of its own; its number."""

    def number() -> int | None:
        job = job_of(job_id)
        assert job.state not in FINAL, f"it ended too soon: {job.state}, {job.status_detail}"
        with transaction() as session:
            own = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.attempt == job.attempt)
            has_one = session.scalar(own.limit(1)) is not None
        return job.attempt if has_one and job.attempt > after else None

    return wait_until(number, 60)


def resumes(job_id: UUID) -> set[int]:
    """The attempts that were queued to go on from a checkpoint."""
    sentences = [event.data["detail"] for event in events_of(job_id) if event.data.get("state") == "queued"]
    return {
        number
        for number, sentence in enumerate(sentences[1:], 2)
        if re.search(r"tried again from the checkpoint at iteration \d+", sentence)
    }


def numbers(job_id: UUID) -> dict[str, dict[int, float]]:
    """All metrics but the time and the memory that they took."""
    return {name: points for name, points in metrics_of(job_id).items() if name not in ("seconds", "memory_bytes")}
