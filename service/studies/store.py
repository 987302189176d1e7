"""Queries on studies: grids of jobs, of which at most `concurrency` are in the queue or run at the same time.

All of a study's jobs are written when it is submitted. Those beyond its concurrency are *held*: their state is queued, but they
are not in the queue's index. `advance` releases the next of them, or ends the study when all its jobs have ended. Nothing else
releases jobs, and it counts under the lock of the study's row, so that two calls at once never release too many. It may be
called at any time: a worker calls it when a job of the study has ended, and the reconciler if the worker didn't.

A transaction that locks both locks a study's row before those of its jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, case, delete, exists, func, insert, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from amaml.metrics import SECONDS
from amaml.spec import JobSpec
from service.core import outbox
from service.core.refusals import BadReference, WrongState
from service.jobs import store as jobs
from service.jobs.reasons import TURN, TURN_DETAIL
from service.jobs.tables import Evaluation, Job, Metric
from service.jobs.transitions import FINAL, LEASED, STATES
from service.studies.tables import Study
from service.studies.transitions import STUDY

StudyState = Literal["running", "cancelling", "finished", "cancelled"]
OPEN: Final[tuple[StudyState, ...]] = ("running", "cancelling")

_LIVES: Final = Job.state.not_in(FINAL)
_IS_HELD: Final = (Job.state == "queued") & Job.held
_IS_RELEASED: Final = Job.state.in_(LEASED) | ((Job.state == "queued") & ~Job.held)


@dataclass(frozen=True)
class NewCell:
    """One job to be."""

    coordinates: dict[str, Any]
    """JSON Pointer → value."""
    spec: JobSpec


class BadCell(Exception):
    """A cell's spec names something that the workspace doesn't have."""

    def __init__(self, number: int, reference: BadReference) -> None:
        super().__init__(str(reference))
        self.number, self.reference = number, reference


class Found(NamedTuple):
    """A study, the progress of its jobs, and a version that changes with every change of the study or a job."""

    study: Study
    states: dict[str, int]
    """State → how many jobs are in it; those without any are left out."""
    iteration: int
    """Meta-iterations done, summed over jobs."""
    iterations: int
    version: str


class CellRow(NamedTuple):
    """A cell's job, without its spec."""

    number: int
    coordinates: dict[str, Any]
    job_id: UUID
    state: str
    status_reason: str | None
    status_detail: str | None
    iteration: int
    iterations: int
    metrics: dict[str, Any]


class CellResult(NamedTuple):
    """The results of a cell's job."""

    cell: CellRow
    evaluation: Evaluation | None
    """The last."""
    seconds: float | None
    """Median time of the last thousand meta-updates."""


def submit(
    session: Session, workspace_id: UUID, name: str, base: Any, grid: Any, concurrency: int, cells: Sequence[NewCell]
) -> UUID:
    """Writes the study and all its jobs, of which the first are released; returns its id. Raises BadCell, quotas.Exceeded."""
    study_id = session.scalars(
        insert(Study)
        .values(workspace_id=workspace_id, name=name, base=base, grid=grid, concurrency=concurrency)
        .returning(Study.id)
    ).one()
    known: dict[str, bool] = {}
    rows = []
    for number, cell in enumerate(cells):
        row = jobs.queued_row(workspace_id, cell.spec, _waits_for_data(session, workspace_id, number, cell.spec, known))
        held = number >= concurrency
        if held:
            row |= {"status_reason": TURN, "status_detail": TURN_DETAIL}
        rows.append(row | {"study_id": study_id, "cell_number": number, "cell": cell.coordinates, "held": held})
    jobs.insert_queued(session, rows)
    for _ in range(min(concurrency, len(rows))):
        outbox.put(session, "wake")
    return study_id


def _waits_for_data(session: Session, workspace_id: UUID, number: int, spec: JobSpec, known: dict[str, bool]) -> bool:
    """Whether the cell waits for the check of its data set. `known`: the results for cells with the same references."""
    source = spec.meta.init_from
    references = f"{spec.family.kind} {getattr(spec.family, 'dataset', None)} {source and (source.job, source.step)}"
    if references not in known:
        try:
            known[references] = jobs.check_references(session, workspace_id, spec)
        except BadReference as problem:
            raise BadCell(number, problem) from None
    return known[references]


def find(session: Session, workspace_id: UUID, study_id: UUID) -> Found | None:
    study = session.scalars(_own(workspace_id).where(Study.id == study_id)).one_or_none()
    return next(iter(_with_counts(session, [study])), None) if study else None


def page(session: Session, workspace_id: UUID, before: UUID | None, limit: int) -> list[Found]:
    """The newest studies older than `before`."""
    query = _own(workspace_id).order_by(Study.id.desc()).limit(limit)
    return _with_counts(session, session.scalars(query if before is None else query.where(Study.id < before)).all())


def cells(session: Session, study_id: UUID) -> list[CellRow]:
    """All cells of the study, in the grid's order."""
    columns = (
        Job.cell_number, Job.cell, Job.id, Job.state, Job.status_reason, Job.status_detail, Job.iteration, Job.iterations,
        Job.metrics,
    )  # fmt: skip
    rows = session.execute(select(*columns).where(Job.study_id == study_id).order_by(Job.cell_number))
    return [CellRow(*row) for row in rows]


def results(session: Session, study_id: UUID) -> list[CellResult]:
    """The results of all cells, in the grid's order."""
    own = Job.study_id == study_id
    last = (
        select(Evaluation)
        .join(Job, Job.id == Evaluation.job_id)
        .where(own)
        .ext(distinct_on(Evaluation.job_id))
        .order_by(Evaluation.job_id, Evaluation.step.desc())
    )
    evaluations = {one.job_id: one for one in session.scalars(last)}
    median = (
        select(Metric.job_id, func.percentile_cont(0.5).within_group(Metric.value))
        .join(Job, Job.id == Metric.job_id)
        .where(own, Metric.name == SECONDS, Metric.step > Job.iteration - 1_000)
        .group_by(Metric.job_id)
    )
    seconds: dict[UUID, float] = {row[0]: row[1] for row in session.execute(median)}
    return [
        CellResult(cell, evaluations.get(cell.job_id), seconds.get(cell.job_id)) for cell in cells(session, study_id)
    ]


def cancel(session: Session, workspace_id: UUID, study_id: UUID) -> bool:
    """Cancels every job of the study that hasn't ended; False if there is no such study. Cancelling it again changes nothing.

    Raises WrongState for a study that has finished.
    """
    study = session.scalars(_locked(workspace_id, study_id)).one_or_none()
    if study is None:
        return False
    if study.state == "finished":
        raise WrongState("The study has finished already: there is nothing left to cancel.")
    if study.state == "running":
        _become(study, "cancelling")
        live = select(Job.id).where(Job.study_id == study_id, _LIVES).order_by(Job.cell_number)
        for job_id in session.scalars(live).all():
            _cancel_unless_ended(session, workspace_id, job_id)
        _advance(session, study)
    return True


def _cancel_unless_ended(session: Session, workspace_id: UUID, job_id: UUID) -> None:
    try:
        jobs.cancel(session, workspace_id, job_id)
    except WrongState:  # it has just ended
        return


def remove(session: Session, workspace_id: UUID, study_id: UUID) -> bool:
    """Deletes an ended study with its jobs and all their results; False if there is no such study.

    Raises WrongState, InUse.
    """
    study = session.scalars(_locked(workspace_id, study_id)).one_or_none()
    if study is None:
        return False
    _advance(session, study)
    if study.state in OPEN:
        raise WrongState(f"The study is {study.state}: cancel it, wait until it has ended, then delete it.")
    jobs.remove_ended(session, Job.study_id == study_id)
    session.execute(delete(Study).where(Study.id == study_id))
    return True


def due(session: Session) -> list[UUID]:
    """The studies in which `advance` has something to do."""
    own = Job.study_id == Study.id
    released = select(func.count()).where(own, _IS_RELEASED).correlate(Study).scalar_subquery()
    has_room = (Study.state == "running") & exists().where(own, _IS_HELD) & (released < Study.concurrency)
    query = select(Study.id).where(Study.state.in_(OPEN), or_(~exists().where(own, _LIVES), has_room))
    return list(session.scalars(query))


def advance(session: Session, study_id: UUID) -> None:
    """Releases the study's next jobs into the queue, as its concurrency allows; ends the study when all jobs have ended."""
    open_one = select(Study).where(Study.id == study_id, Study.state.in_(OPEN)).with_for_update(key_share=True)
    study = session.scalars(open_one).one_or_none()
    if study is not None:
        _advance(session, study)


def _advance(session: Session, study: Study) -> None:
    """`advance`, with the study's row locked."""
    if study.state not in OPEN:
        return
    session.flush()
    live, released = session.execute(
        select(func.count(), func.count().filter(_IS_RELEASED)).where(Job.study_id == study.id, _LIVES)
    ).one()
    if live == 0:
        _become(study, "finished" if study.state == "running" else "cancelled")
        study.ended_at = func.now()
    elif study.state == "running" and released < study.concurrency:
        _release(session, study.id, study.concurrency - released)


def _become(study: Study, target: StudyState) -> None:
    STUDY.check(study.state, target)
    study.state = target


def _release(session: Session, study_id: UUID, number: int) -> None:
    """Releases the next held jobs, to the end of the queue."""
    next_ones = (
        select(Job.id)
        .where(Job.study_id == study_id, _IS_HELD)
        .order_by(Job.cell_number)
        .limit(number)
        .with_for_update(key_share=True)
    )
    waits_for_turn = Job.status_reason == TURN
    released = (
        update(Job)
        .where(Job.id.in_(session.scalars(next_ones).all()))
        .values(
            held=False,
            queued_at=func.now(),
            status_reason=case((waits_for_turn, None), else_=Job.status_reason),
            status_detail=case((waits_for_turn, None), else_=Job.status_detail),
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    for _ in session.scalars(released).all():
        outbox.put(session, "wake")


def _own(workspace_id: UUID) -> Any:
    return select(Study).where(Study.workspace_id == workspace_id)


def _locked(workspace_id: UUID, study_id: UUID) -> Any:
    # Not FOR UPDATE: at a job's second update in one transaction Postgres locks its study's row FOR KEY SHARE, which FOR UPDATE
    # would block. The worker, which holds the job's row, and this transaction, which waits for that row, would deadlock.
    return _own(workspace_id).where(Study.id == study_id).with_for_update(key_share=True)


# xmin as in service.jobs.store: that of the study's row, and those of all its jobs in order.
_VERSION: Final[ColumnElement[str]] = literal_column(
    "md5(string_agg(jobs.xmin::text || '-' || jobs.last_seq, ',' ORDER BY jobs.cell_number))"
)


def _with_counts(session: Session, studies: Sequence[Study]) -> list[Found]:
    by_state: list[Any] = [func.count().filter(Job.state == state) for state in STATES]
    row_version: Any = literal_column("studies.xmin::text")
    query = (
        select(
            Study, row_version, _VERSION, func.sum(Job.iteration), func.sum(Job.iterations),
            *by_state,
        )
        .join(Job, Job.study_id == Study.id)
        .where(Study.id.in_([study.id for study in studies]))
        .group_by(Study.id, row_version)
        # The study is read again together with its version: an older state under a later version would be taken for the
        # newest as long as that version stays.
        .execution_options(populate_existing=True)
    )  # fmt: skip
    rows: dict[UUID, tuple[Any, ...]] = {row[0].id: tuple(row[1:]) for row in session.execute(query)}
    found = []
    for study in studies:
        if study.id not in rows:
            continue  # deleted since it was found
        own, version, iteration, iterations, *counts = rows[study.id]
        states: dict[str, int] = {state: count for state, count in zip(STATES, counts, strict=True) if count}
        found.append(Found(study, states, iteration, iterations, f"{own}-{version}"))
    return found
