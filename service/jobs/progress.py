"""What a running attempt reports: how far it is, its metrics, its checkpoints. The caller holds the claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core import blobs
from service.jobs import events
from service.jobs.tables import Checkpoint, Evaluation, Job, Metric
from service.jobs.transitions import FINAL

KEPT_CHECKPOINTS = 10
"""Older checkpoints are removed when a newer one is committed, unless a job waits to start from them."""

ROWS_AT_ONCE = 5_000
"""Rows of four values each: a statement can't have more than 65,535 parameters."""

Points = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name → points (step, value)."""


def advance(job: Job, phase: str, iteration: int, eta_seconds: float | None) -> None:
    """Notes how far the trainer is now."""
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
    for first in range(0, len(rows), ROWS_AT_ONCE):
        statement = insert(Metric).values(rows[first : first + ROWS_AT_ONCE])
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[Metric.job_id, Metric.name, Metric.step], set_={"value": statement.excluded.value}
            )
        )
    job.metrics = {**job.metrics, **{name: _json(series[-1][1]) for name, series in points.items() if series}}


def add_evaluations(session: Session, job: Job, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Stores the results of evaluations, each a mapping by column. Numbers that aren't finite become null, as in JSON."""
    # A resumed attempt may have reported a step twice since the last write.
    rows = list({one["step"]: {"job_id": job.id, **_json_tree(one)} for one in evaluations}.values())
    if not rows:
        return
    statement = insert(Evaluation).values(rows)
    found = {name: statement.excluded[name] for name in ("metric", "higher_is_better", "scores", "curve", "along_flow")}
    session.execute(statement.on_conflict_do_update(index_elements=[Evaluation.job_id, Evaluation.step], set_=found))


def write_event(session: Session, job: Job) -> None:
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
    """Adds a checkpoint; returns False and writes nothing if the job has another one of that step already. May be repeated with
    the same checkpoint, as a caller that doesn't learn whether its transaction was committed will do."""
    added = session.scalar(
        insert(Checkpoint)
        .values(job_id=job.id, step=step, attempt=job.attempt, blob_id=blob_id)
        .on_conflict_do_nothing()
        .returning(Checkpoint.step)
    )
    if added is None:
        kept = select(Checkpoint.blob_id).where(Checkpoint.job_id == job.id, Checkpoint.step == step)
        return session.scalars(kept).one() == blob_id
    blobs.give(session, blob_id, job.workspace_id)
    _prune(session, job.id)
    events.append(session, job.id, "checkpoint", {"step": step})
    return True


def _prune(session: Session, job_id: UUID) -> None:
    """Removes the oldest checkpoints beyond KEPT_CHECKPOINTS, except those from which an unfinished job starts."""
    newest_first = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc())
    old = session.scalars(newest_first.offset(KEPT_CHECKPOINTS)).all()
    if not old:
        return
    step = Job.spec["meta"]["init_from"]["step"].as_integer()  # within JSONB: the condition is the database's
    needed = set(session.scalars(select(step).where(Job.init_from_id == job_id, Job.state.not_in(FINAL))))
    gone = [checkpoint for checkpoint in old if checkpoint.step not in needed]
    for checkpoint in gone:
        session.delete(checkpoint)
    session.flush()
    blobs.remove(session, [checkpoint.blob_id for checkpoint in gone])


def forget_end(session: Session, job: Job) -> None:
    """Removes the checkpoint, evaluation and metrics of an ended job's last step, which the longer run will report anew."""
    last = job.iterations
    gone = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step >= last)).all()
    for checkpoint in gone:
        session.delete(checkpoint)
    session.execute(delete(Evaluation).where(Evaluation.job_id == job.id, Evaluation.step >= last))
    session.execute(delete(Metric).where(Metric.job_id == job.id, Metric.step >= last))
    session.flush()
    blobs.remove(session, [checkpoint.blob_id for checkpoint in gone])


def _json(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _json_tree(value: Any) -> Any:
    if isinstance(value, float):
        return _json(value)
    if isinstance(value, Mapping):
        return {name: _json_tree(item) for name, item in value.items()}
    return [_json_tree(item) for item in value] if isinstance(value, list | tuple) else value
