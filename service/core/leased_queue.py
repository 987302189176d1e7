"""The leased queue: rows of a table that workers take one at a time, each with a lease and a fence.

The waiting rows are the queue, so there is no message that could be lost. Taking a row increments its `attempt`, which is the
fence, and sets `lease_expires_at`. Whoever works on the row renews the lease; each of its later writes checks the fence, and is
refused once another has taken the row. When a lease lapses, the reconciler (worker/maintenance/) gives the row back to the
queue or ends it. All times are Postgres' own `now()`.

The row's columns: `id`, `state`, `attempt`, and `lease_expires_at`, which is null unless a worker holds the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.base import ExecutableOption

from service.core.tables import LeasedRow
from service.core.transitions import Transitions

RowT = TypeVar("RowT", bound=LeasedRow)


@dataclass(frozen=True)
class Held:
    """The right to work on a row. Each queue's own class adds what the work needs to know."""

    id: UUID
    attempt: int
    """The fence."""


class LeasedQueue(Generic[RowT]):
    """The queue in `table`, whose rows change their state by `transitions`. `deferred`: options with which `hold` loads a row."""

    def __init__(self, table: type[RowT], transitions: Transitions, *deferred: ExecutableOption) -> None:
        self._table, self._transitions, self._deferred = table, transitions, deferred

    def waits(self) -> ColumnElement[bool]:
        """The condition of a row that nobody holds and that may be taken."""
        return and_(self._table.state == self._transitions.initial, self._table.lease_expires_at.is_(None))

    def lock_next(self, session: Session, candidates: Any) -> Sequence[Any] | None:
        """The first row of `candidates`, a select of the table and what is joined to it, locked; None if there is none.

        Rows that another worker is taking at the same moment are skipped, so no two workers get the same row.
        """
        first = candidates.limit(1).with_for_update(skip_locked=True, of=self._table)
        return session.execute(first).one_or_none()

    def take(self, row: RowT, lease: timedelta) -> None:
        """Takes a locked row: increments its fence and begins its lease."""
        row.attempt += 1
        self.extend(row, lease)

    def hold(self, session: Session, held: Held) -> RowT | None:
        """The row, locked until the transaction ends; None if another has taken it, or it has ended or been deleted."""
        query = select(self._table).where(self._is_held(held)).options(*self._deferred).with_for_update()
        return session.scalars(query).one_or_none()

    def extend(self, row: RowT, lease: timedelta) -> None:
        """Lets the lease of a locked row begin anew now."""
        row.lease_expires_at = func.now() + lease

    def renew(self, session: Session, held: Held, lease: timedelta) -> bool:
        """Lets the lease begin anew now; False if the caller no longer holds the row."""
        renewed = update(self._table).where(self._is_held(held)).values(lease_expires_at=func.now() + lease)
        return session.scalar(renewed.returning(self._table.id)) is not None

    def give_back(self, row: RowT) -> None:
        """Puts a locked row back into the queue."""
        row.lease_expires_at = None
        if row.state != self._transitions.initial:
            self.become(row, self._transitions.initial)

    def become(self, row: RowT, target: str) -> None:
        """Changes the state of a locked row, and ends its lease where the new state is final; raises IllegalTransition."""
        self._transitions.check(row.state, target)
        row.state = target
        if target in self._transitions.final:
            row.lease_expires_at = None

    def lapsed(self, session: Session) -> RowT | None:
        """The row whose lease lapsed first, locked; None if there is none. Rows that another process has locked are skipped."""
        query = select(self._table).where(self.has_lapsed()).order_by(self._table.lease_expires_at)
        return session.scalars(query.limit(1).with_for_update(skip_locked=True)).first()

    def has_lapsed(self) -> ColumnElement[bool]:
        """The condition of a row whose lease has lapsed."""
        return self._table.lease_expires_at < func.now()

    def _is_held(self, held: Held) -> ColumnElement[bool]:
        return and_(
            self._table.id == held.id,
            self._table.attempt == held.attempt,
            self._table.lease_expires_at.is_not(None),
        )
