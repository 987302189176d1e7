"""Who calls. Every route below /v1 depends on `authenticated`; what is public is named in app.py."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.problems import Problem
from service.store import keys
from service.store.database import transaction
from service.store.keys import Principal

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="An API key, as `Authorization: Bearer amaml_…`. The first one lies in `$AMAML_HOME/admin.key`.",
)


def authenticated(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    """The key's principal; raises the 401 problem, which doesn't tell an unknown key from a revoked one."""
    if credentials is None:
        raise _refused("Send an API key: Authorization: Bearer amaml_…", "")
    with transaction() as session:
        found = keys.principal(session, credentials.credentials)
    if found is None:
        raise _refused(
            "This API key is not known, or was revoked: check it for typing errors.", ', error="invalid_token"'
        )
    request.state.principal = found
    return found


def _refused(detail: str, why: str) -> Problem:
    return Problem("unauthenticated", detail, headers={"WWW-Authenticate": f'Bearer realm="amaml"{why}'})


Caller = Annotated[Principal, Depends(authenticated)]
