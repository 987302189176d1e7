"""Queries on worker processes. Each reports every two seconds that it is alive, and on which devices it can run jobs."""

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
    """Notes that the worker is alive and can run on `devices`, a subset of cpu and cuda; `gpu`: as in the table."""
    row = insert(Worker).values(id=worker_id, host=host, pid=pid, devices=list(devices), gpu=gpu)
    now = {"seen_at": func.now(), "devices": row.excluded.devices, "gpu": row.excluded.gpu}
    session.execute(row.on_conflict_do_update(index_elements=[Worker.id], set_=now))


def gone(session: Session, worker_id: UUID) -> None:
    """Removes a worker that has been shut down."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def prune(session: Session, older_than: timedelta) -> None:
    """Removes workers that haven't been seen for that long."""
    session.execute(delete(Worker).where(Worker.seen_at < func.now() - older_than))


def any_with(session: Session, device: str) -> bool:
    """Whether any worker that is alive can run on `device`."""
    alive = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.devices.contains([device]))
    return bool(session.scalar(select(alive)))


def gpus(session: Session) -> list[str]:
    """The models of GPU that workers which are alive have."""
    name = Worker.gpu["name"].as_string()
    alive = select(name).where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.gpu.is_not(None)).distinct()
    return [found for found in session.scalars(alive) if found is not None]


def any_on(session: Session, host: str) -> bool:
    """Whether any worker on this host is alive."""
    alive = exists().where(Worker.seen_at > func.now() - LIVE_WITHIN, Worker.host == host)
    return bool(session.scalar(select(alive)))


def every(session: Session) -> list[tuple[Worker, bool]]:
    """All workers that haven't been pruned, the oldest first, and whether each is alive."""
    query = select(Worker, Worker.seen_at > func.now() - LIVE_WITHIN).order_by(Worker.started_at, Worker.id)
    return [(worker, lives) for worker, lives in session.execute(query)]


def any_lives(session: Session) -> bool:
    """Whether any worker is alive, so that jobs would run."""
    return bool(session.scalar(select(exists().where(Worker.seen_at > func.now() - LIVE_WITHIN))))
