"""Queries on workspaces for operators."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.core.quota_bounds import Name
from service.core.tables import Workspace


def every(session: Session) -> list[Workspace]:
    """All workspaces, ordered by name."""
    return list(session.scalars(select(Workspace).order_by(Workspace.name)))


def find(session: Session, name: str) -> Workspace | None:
    return session.scalars(select(Workspace).where(Workspace.name == name)).one_or_none()


def set_quota(session: Session, workspace_id: UUID, name: Name, bound: int | None) -> None:
    """Sets the workspace's own quota, which replaces the default; None: unlimited."""
    merged = Workspace.quotas.op("||")(func.jsonb_build_object(name, bound))
    session.execute(update(Workspace).where(Workspace.id == workspace_id).values(quotas=merged))


def use_default_quota(session: Session, workspace_id: UUID, name: Name) -> None:
    session.execute(update(Workspace).where(Workspace.id == workspace_id).values(quotas=Workspace.quotas.op("-")(name)))
