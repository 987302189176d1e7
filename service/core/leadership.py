"""Leases for work that only one process at a time may do: its holder leads until the lease lapses or is given back."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core.tables import Leadership


def lead(session: Session, role: str, holder: UUID, lease: timedelta) -> bool:
    """Takes or renews the lease of `role`; False where another holder's hasn't lapsed."""
    expires_at = func.now() + lease
    taken = (
        insert(Leadership)
        .values(role=role, holder=holder, expires_at=expires_at)
        .on_conflict_do_update(
            index_elements=[Leadership.role],
            set_={"holder": holder, "expires_at": expires_at},
            where=(Leadership.holder == holder) | (Leadership.expires_at < func.now()),
        )
        .returning(Leadership.role)
    )
    return session.scalar(taken) is not None


def give_back(session: Session, role: str, holder: UUID) -> None:
    """Ends the lease of `role`, if this holder has it, so that another needn't wait for it to lapse."""
    session.execute(delete(Leadership).where(Leadership.role == role, Leadership.holder == holder))
