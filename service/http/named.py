"""What the id in a path names in the caller's workspace: found, changed or removed, or the 404 problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from service.core.database import transaction
from service.core.principal import Principal
from service.http.problems import not_found
from service.http.replies import json_reply, path_id

FoundT = TypeVar("FoundT")
Find = Callable[[Session, UUID, UUID], FoundT | None]
"""In a session, by the ids of the workspace and of the thing; None where there is none."""
Step = Callable[[Session, UUID, UUID], bool]
"""As `Find`; False where there is none."""


def existing(found: FoundT | None, what: str) -> FoundT:
    """What was found; raises the 404 problem where nothing was."""
    if found is None:
        raise not_found(what)
    return found


def found(caller: Principal, given_id: str, what: str, find: Find[FoundT]) -> FoundT:
    """Raises the 404 problem where there is none."""
    wanted = path_id(given_id, what)
    with transaction() as session:
        return existing(find(session, caller.workspace_id, wanted), what)


def removed(caller: Principal, given_id: str, what: str, remove: Step) -> Response:
    """The answer to DELETE, once it is removed. Raises the 404 problem where there is none."""
    wanted = path_id(given_id, what)
    with transaction() as session:
        if not remove(session, caller.workspace_id, wanted):
            raise not_found(what)
    return Response(status_code=204)


def steered(
    caller: Principal, given_id: str, what: str, step: Step, find: Find[FoundT], document: Callable[[FoundT], BaseModel]
) -> Response:
    """The answer to a POST that asks for a step: the thing as it is after it. Raises the 404 problem where there is none."""
    wanted = path_id(given_id, what)
    with transaction() as session:
        known = step(session, caller.workspace_id, wanted)
        shown = document(existing(find(session, caller.workspace_id, wanted) if known else None, what))
    return json_reply(shown, 202)
