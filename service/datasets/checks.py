"""Queries on the checks of data sets for workers: the leased queue of pending data sets, and the verdicts.

A report is a verdict on the file and never changes. A check without a report (its process crashed, its worker was lost, it took
too long or too much memory) is tried again a few times, and then the data set is `invalid` without a report. If the same bytes
are uploaded again, the file is checked again, with as many tries. The attempt, which is the fence, is never reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from amaml.dataset_report import DatasetReport
from service.core import outbox
from service.core.database import notify_after_commit
from service.core.leased_queue import Held, LeasedQueue
from service.core.notifications import CHANGES, WORK, notify
from service.datasets.tables import Dataset
from service.datasets.transitions import DATASET
from service.jobs.reasons import PENDING
from service.jobs.tables import Job

MAX_TRIES: Final = 5
"""A check whose worker was lost so often isn't tried again: the file may be the cause."""
MAX_BREAKDOWNS: Final = 3
"""A check whose process crashes at its try of this number, or a later one, isn't tried again."""


QUEUE: Final = LeasedQueue(Dataset, DATASET)


@dataclass(frozen=True)
class Check(Held):
    """The right to check a data set, and what there is to check."""

    tries: int
    """How often the check was tried since the latest upload, including this time."""
    format: str
    families: tuple[str, ...]
    blob_id: UUID
    bytes: int


def take_next(session: Session, lease: timedelta) -> Check | None:
    """The check that has waited longest; None if none waits."""
    found = QUEUE.lock_next(session, select(Dataset).where(QUEUE.waits()).order_by(Dataset.id))
    if found is None:
        return None
    dataset: Dataset = found[0]
    QUEUE.take(dataset, lease)
    dataset.tries += 1
    return Check(
        dataset.id, dataset.attempt, dataset.tries, dataset.format, tuple(dataset.families), dataset.blob_id, dataset.bytes
    )  # fmt: skip


def give_back(session: Session, check: Check, *, counted: bool = False) -> None:
    """Puts the check back into the queue; `counted`: whether this was one of its tries."""
    dataset = QUEUE.hold(session, check)
    if dataset is None:
        return
    if not counted:
        dataset.tries -= 1
    QUEUE.give_back(dataset)
    notify_after_commit(session, WORK, "data sets")


def lapsed(session: Session, dataset: Dataset) -> None:
    """Its worker was lost: another will check it, unless that has happened too often."""
    if dataset.tries < MAX_TRIES:
        QUEUE.give_back(dataset)
        notify_after_commit(session, WORK, "data sets")
        return
    _end(
        session, dataset, None,
        f"Its check was interrupted {MAX_TRIES} times, the last time by the loss of its worker: examine the workers' logs and "
        "memory, then upload the same file again, which has it checked again.",
    )  # fmt: skip


def broke_down(session: Session, check: Check, how: str, remedy: str) -> bool:
    """The check crashed, which says nothing about the file. True: it is tried again; else the data set is invalid.

    `how` follows "the last time" in the sentence for the user, and `remedy` is its end without the full stop.
    """
    if check.tries < MAX_BREAKDOWNS:
        give_back(session, check, counted=True)
        return True
    finish(session, check, None, f"Its check broke down {check.tries} times, the last time {how}: {remedy}.")
    return False


def finish(session: Session, check: Check, report: DatasetReport | None, detail: str | None) -> bool:
    """Writes the verdict: invalid with the sentence `detail`, or ready if it is None. False if another has taken the check."""
    dataset = QUEUE.hold(session, check)
    if dataset is None:
        return False
    _end(session, dataset, report, detail)
    return True


def begin_anew(session: Session, dataset: Dataset) -> None:
    """Makes a data set that is invalid without a report pending again. The caller has locked its row."""
    QUEUE.become(dataset, "pending")
    dataset.tries = 0
    dataset.status_detail = dataset.checked_at = None
    notify_after_commit(session, WORK, "data sets")


def _end(session: Session, dataset: Dataset, report: DatasetReport | None, detail: str | None) -> None:
    """Writes the verdict, and wakes jobs and requests that wait for it."""
    QUEUE.become(dataset, "ready" if detail is None else "invalid")
    dataset.status_detail = detail
    dataset.checked_at = func.now()
    if report is not None:
        dataset.report = report.model_dump(mode="json")
        if detail is None:
            dataset.rows, dataset.tasks = report.rows, report.tasks
    waiting = (Job.dataset_id == dataset.id, Job.state == "queued")
    waiting_reason = (
        update(Job).where(*waiting, Job.status_reason == PENDING).values(status_reason=None, status_detail=None)
    )
    session.execute(waiting_reason.execution_options(synchronize_session=False))
    if session.scalar(select(Job.id).where(*waiting).limit(1)) is not None:
        outbox.put(session, "wake")
    notify(session, CHANGES, str(dataset.id))
