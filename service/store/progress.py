"""What a running attempt tells: how far it is, its metrics, its checkpoints. The caller holds the claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.store import blobs, events
from service.store.tables import Checkpoint, Job, Metric

KEPT_CHECKPOINTS = 10
"""Older checkpoints go when a newer one is committed."""

Points = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name → points (step, value)."""


def advance(job: Job, phase: str, iteration: int, eta_seconds: float | None) -> None:
    """The trainer got this far, just now."""
    job.phase = phase
    job.iteration = iteration
    job.eta_seconds = eta_seconds
    job.progress_at = func.now()


def add_metrics(session: Session, job: Job, points: Points) -> None:
    """Stores the points: one value a name and step. A resumed attempt repeats steps; the repeat replaces the value."""
    rows = [
        {"job_id": job.id, "name": name, "step": step, "value": value}
        for name, series in points.items()
        for step, value in dict(series).items()
    ]
    if not rows:
        return
    statement = insert(Metric).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Metric.job_id, Metric.name, Metric.step], set_={"value": statement.excluded.value}
        )
    )
    job.metrics = {**job.metrics, **{name: _json(series[-1][1]) for name, series in points.items() if series}}


def tell(session: Session, job: Job) -> None:
    """Writes a progress event with the job's present numbers."""
    data: dict[str, Any] = {
        "phase": job.phase,
        "iteration": job.iteration,
        "iterations": job.iterations,
        "eta_seconds": job.eta_seconds,
        "metrics": job.metrics,
    }
    events.append(session, job.id, "progress", data)


def add_checkpoint(session: Session, job: Job, step: int, blob_id: UUID) -> bool:
    """Commits a checkpoint; False, with nothing written, where the job has one of that step already."""
    added = session.scalar(
        insert(Checkpoint)
        .values(job_id=job.id, step=step, attempt=job.attempt, blob_id=blob_id)
        .on_conflict_do_nothing()
        .returning(Checkpoint.step)
    )
    if added is None:
        return False
    old = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc()).offset(KEPT_CHECKPOINTS)
    ).all()
    for checkpoint in old:
        session.delete(checkpoint)
    session.flush()
    blobs.remove(session, [checkpoint.blob_id for checkpoint in old])
    events.append(session, job.id, "checkpoint", {"step": step})
    return True


def _json(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
