"""Who would run a job: each worker process tells every two seconds that it lives and what it can run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.workers.tables import LIVE_WITHIN, Worker


def seen(
    session: Session,
    worker_id: UUID,
    host: str,
    pid: int,
    devices: Sequence[str],
    gpu: Mapping[str, Any] | None = None,
) -> None:
    """The worker lives and can run on `devices`, a subset of cpu and cuda; `gpu`: as in the table."""
    row = insert(Worker).values(id=worker_id, host=host, pid=pid, devices=list(devices), gpu=gpu)
    now = {"seen_at": func.now(), "devices": row.excluded.devices, "gpu": row.excluded.gpu}
    session.execute(row.on_conflict_do_update(index_elements=[Worker.id], set_=now))


def gone(session: Session, worker_id: UUID) -> None:
    """The worker ended as it was asked to."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def prune(session: Session, older_than: timedelta) -> None:
    """Removes workers that haven't been seen for that long."""
    session.execute(delete(Worker).where(Worker.seen_at < func.now() - older_than))


def any_with(session: Session, device: str) -> bool:
    """Whether a living worker can run on `device`."""
    living = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.devices.contains([device]))
    return bool(session.scalar(select(living)))


def gpus(session: Session) -> list[str]:
    """The models of GPU that living workers have."""
    name = Worker.gpu["name"].as_string()
    living = select(name).where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.gpu.is_not(None)).distinct()
    return [found for found in session.scalars(living) if found is not None]


def any_on(session: Session, host: str) -> bool:
    """Whether a worker lives on this host."""
    living = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.host == host)
    return bool(session.scalar(select(living)))


def every(session: Session) -> list[tuple[Worker, bool]]:
    """Each worker that was ever seen and hasn't been pruned, the oldest first, and whether it lives."""
    query = select(Worker, Worker.seen_at > func.now() - LIVE_WITHIN).order_by(Worker.started_at, Worker.id)
    return [(worker, lives) for worker, lives in session.execute(query)]


def any_lives(session: Session) -> bool:
    """Whether jobs would run."""
    return bool(session.scalar(select(exists().where(Worker.seen_at > func.now() - LIVE_WITHIN))))
