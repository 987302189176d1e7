"""The checks of data sets, as workers see them: taken one at a time with a lease and a fence, and their verdicts.

What isn't checked lies in the table itself, so there is no message to lose: every worker looks now and then, and takes
what nobody has, or what was taken by a worker whose lease has lapsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from amaml.dataset_report import DatasetReport
from service.store import events, outbox
from service.store.tables import Dataset, Job

MAX_ATTEMPTS: Final = 5
"""A check whose worker was lost so often isn't tried again: the file may be what brings workers down."""
PENDING: Final = "dataset_pending"
"""Reason of a queued job that waits for the check of its data set."""


@dataclass(frozen=True)
class Check:
    """The right to check a data set, and what there is to check."""

    dataset_id: UUID
    attempt: int
    """The fence."""
    format: str
    families: tuple[str, ...]
    blob_id: UUID
    bytes: int


def take_next(session: Session, lease: timedelta) -> Check | None:
    """The check that has waited longest; None if none waits. One that was lost too often is given up here."""
    free = Dataset.lease_expires_at.is_(None) | (Dataset.lease_expires_at < func.now())
    waiting = select(Dataset).where(Dataset.state == "pending", free).order_by(Dataset.id)
    dataset = session.scalars(waiting.limit(1).with_for_update(skip_locked=True)).first()
    if dataset is None:
        return None
    if dataset.attempt >= MAX_ATTEMPTS:
        _end(
            session, dataset, None,
            f"Its check was cut off {dataset.attempt} times, each time with the worker: look into the workers' logs and "
            "memory, delete the data set and upload it again.",
        )  # fmt: skip
        return take_next(session, lease)
    dataset.attempt += 1
    dataset.lease_expires_at = func.now() + lease
    return Check(dataset.id, dataset.attempt, dataset.format, tuple(dataset.families), dataset.blob_id, dataset.bytes)


def renew(session: Session, check: Check, lease: timedelta) -> bool:
    """Counts the lease anew from now; False where the check is another's by now, or the data set is gone."""
    held = update(Dataset).where(_held(check)).values(lease_expires_at=func.now() + lease)
    return session.scalar(held.returning(Dataset.id)) is not None


def give_back(session: Session, check: Check) -> None:
    """Leaves the check to another worker, at once."""
    session.execute(update(Dataset).where(_held(check)).values(lease_expires_at=None, attempt=Dataset.attempt - 1))


def finish(session: Session, check: Check, report: DatasetReport | None, detail: str | None) -> bool:
    """The verdict: invalid with the sentence `detail`, or ready where it is None. False as in `renew`."""
    dataset = session.scalars(select(Dataset).where(_held(check)).with_for_update()).one_or_none()
    if dataset is None:
        return False
    _end(session, dataset, report, detail)
    return True


def _held(check: Check) -> ColumnElement[bool]:
    return and_(Dataset.id == check.dataset_id, Dataset.attempt == check.attempt, Dataset.state == "pending")


def _end(session: Session, dataset: Dataset, report: DatasetReport | None, detail: str | None) -> None:
    """Writes the verdict and wakes who waits for it: jobs, and answers to `Prefer: wait`."""
    dataset.state = "ready" if detail is None else "invalid"
    dataset.status_detail = detail
    dataset.lease_expires_at = None
    dataset.checked_at = func.now()
    if report is not None:
        dataset.report = report.model_dump(mode="json")
        if detail is None:
            dataset.rows, dataset.tasks = report.rows, report.tasks
    waiting = (
        update(Job)
        .where(Job.dataset_id == dataset.id, Job.state == "queued", Job.status_reason == PENDING)
        .values(status_reason=None, status_detail=None)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalars(waiting).all():
        outbox.put(session, "wake")
    session.execute(select(func.pg_notify(events.CHANNEL, str(dataset.id))))
