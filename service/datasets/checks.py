"""The checks of data sets, as workers see them: taken one at a time with a lease and a fence, and their verdicts.

What isn't checked lies in the table itself, so there is no message to lose: every worker looks now and then, and takes
what nobody has, or what was taken by a worker whose lease has lapsed.

A verdict about the file is a report, and is kept for ever. A check that came to no report (its process crashed, its worker was
lost, it took too long or too much memory) is tried again a few times or ends as `invalid` without a report; the same bytes,
uploaded again, then are checked anew, with as many tries. The attempt, which is the fence, goes on being counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from amaml.dataset_report import DatasetReport
from service.core import outbox
from service.datasets.tables import Dataset
from service.jobs import events
from service.jobs.reasons import PENDING
from service.jobs.tables import Job

MAX_TRIES: Final = 5
"""Tries. A check whose worker was lost so often isn't tried again: the file may be what brings workers down."""
MAX_BREAKDOWNS: Final = 3
"""Tries. A check whose process broke down at this one or a later one isn't tried again."""


@dataclass(frozen=True)
class Check:
    """The right to check a data set, and what there is to check."""

    dataset_id: UUID
    attempt: int
    """The fence."""
    tries: int
    """How often the file was tried since it was uploaded last, this time included."""
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
    if dataset.tries >= MAX_TRIES:
        _end(
            session, dataset, None,
            f"Its check was cut off {MAX_TRIES} times, the last time with its worker: look into the workers' logs and "
            "memory, then upload the same file again, and it is checked anew.",
        )  # fmt: skip
        return take_next(session, lease)
    dataset.attempt += 1
    dataset.tries += 1
    dataset.lease_expires_at = func.now() + lease
    return Check(
        dataset.id, dataset.attempt, dataset.tries, dataset.format, tuple(dataset.families), dataset.blob_id, dataset.bytes
    )  # fmt: skip


def renew(session: Session, check: Check, lease: timedelta) -> bool:
    """Counts the lease anew from now; False where the check is another's by now, or the data set is gone."""
    held = update(Dataset).where(_held(check)).values(lease_expires_at=func.now() + lease)
    return session.scalar(held.returning(Dataset.id)) is not None


def give_back(session: Session, check: Check, *, counted: bool = False) -> None:
    """Leaves the check to whichever worker comes first; `counted`: as one of its tries."""
    left = {"lease_expires_at": None, "tries": Dataset.tries - (0 if counted else 1)}
    session.execute(update(Dataset).where(_held(check)).values(left))
    outbox.tell(session, "data sets")


def broke_down(session: Session, check: Check, how: str, remedy: str) -> bool:
    """The check ended by an accident, which says nothing of the file. True: it is tried again; else the data set is invalid.

    `how` follows "the last time" in the sentence for the user, and `remedy` is its end without the full stop.
    """
    if check.tries < MAX_BREAKDOWNS:
        give_back(session, check, counted=True)
        return True
    finish(session, check, None, f"Its check broke down {check.tries} times, the last time {how}: {remedy}.")
    return False


def finish(session: Session, check: Check, report: DatasetReport | None, detail: str | None) -> bool:
    """The verdict: invalid with the sentence `detail`, or ready where it is None. False as in `renew`."""
    dataset = session.scalars(select(Dataset).where(_held(check)).with_for_update()).one_or_none()
    if dataset is None:
        return False
    _end(session, dataset, report, detail)
    return True


def begin_anew(session: Session, dataset: Dataset) -> None:
    """Has one that is invalid without a report checked again. The caller holds its row's lock."""
    dataset.state, dataset.tries = "pending", 0
    dataset.attempt += 1  # whoever had the last attempt, and was lost with it, holds nothing now
    dataset.lease_expires_at = dataset.status_detail = dataset.checked_at = None
    outbox.tell(session, "data sets")


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
    waiting = (Job.dataset_id == dataset.id, Job.state == "queued")
    told = update(Job).where(*waiting, Job.status_reason == PENDING).values(status_reason=None, status_detail=None)
    session.execute(told.execution_options(synchronize_session=False))
    if session.scalar(select(Job.id).where(*waiting).limit(1)) is not None:
        outbox.put(session, "wake")
    session.execute(select(func.pg_notify(events.CHANNEL, str(dataset.id))))
