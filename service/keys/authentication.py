"""Who sends a request, and whether their key may. Every route below /v1 depends on `authenticated` and names the scope that it
`needs`; public paths are listed in service/main.py."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.core import row_security
from service.core.database import statements
from service.core.principal import Principal
from service.http.problems import Problem
from service.http.rate_limits import RateLimit, digest
from service.keys import store as keys
from service.keys.scopes import SCOPES, Scope, allows

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="An API key, as `Authorization: Bearer amaml_…`. The first one lies in `$AMAML_HOME/admin.key`. "
    "A key holds scopes; each operation names the one that it needs.",
)

RECENT_SECONDS: Final = 1.0
_REMEMBERED: Final = 10_000

_REASONS: Final[dict[keys.Refusal, str]] = {
    "unknown": "This API key is not known: check it for typing errors.",
    "revoked": "This API key was revoked: use another.",
    "expired": "This API key has expired: make a new one with a key that has the scope keys:admin.",
}


class Recent:
    """Keys that were read from the database within the last second, so that a busy key isn't read at every request.

    In processes other than the one that revoked it, a revoked key is accepted for at most that long.
    """

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[Principal, float]] = {}

    def principal(self, key: str) -> Principal | None:
        found, read_at = self._found.get(digest(key), (None, 0.0))
        if found is None or time.monotonic() - read_at > RECENT_SECONDS:
            return None
        return None if found.expires_at is not None and found.expires_at <= datetime.now(UTC) else found

    def note(self, key: str, found: Principal) -> None:
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[digest(key)] = found, time.monotonic()

    def forget(self) -> None:
        """Has all keys read from the database again."""
        self._found.clear()


async def authenticated(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    """The key's principal; raises the 401 problem, which says whether the key is unknown, revoked or expired, or the 429."""
    if credentials is None:
        raise _refused("Send an API key: Authorization: Bearer amaml_…", "")
    limit: RateLimit = request.app.state.rate_limit
    standing = limit.admit(credentials.credentials)
    recent: Recent = request.app.state.recent
    found = recent.principal(credentials.credentials)
    if found is None:
        in_database = await run_in_threadpool(_read, credentials.credentials)
        if not isinstance(in_database, Principal):
            raise _refused(_REASONS[in_database], ', error="invalid_token"')
        found = in_database
        recent.note(credentials.credentials, found)
    request.state.headers = standing or limit.first(credentials.credentials)
    # Not in the thread, because a thread's context variables end with it.
    row_security.enter(found.workspace_id)
    request.state.principal = found
    return found


def _read(key: str) -> Principal | keys.Refusal:
    with statements() as session:
        return keys.principal(session, key) or keys.refusal(session, key)


def _refused(detail: str, why: str) -> Problem:
    return Problem("unauthenticated", detail, headers={"WWW-Authenticate": f'Bearer realm="amaml"{why}'})


Caller = Annotated[Principal, Depends(authenticated)]


@dataclass(frozen=True)
class _Needs:
    scope: Scope

    async def __call__(self, caller: Caller) -> None:
        if not allows(caller.scopes, self.scope):
            raise Problem(
                "missing_scope",
                f"The API key lacks the scope {self.scope} ({SCOPES[self.scope]}); it has "
                f"{', '.join(caller.scopes) or 'none'}: use a key that has it.",
                headers={"WWW-Authenticate": f'Bearer realm="amaml", error="insufficient_scope", scope="{self.scope}"'},
            )


def needs(scope: Scope) -> Any:
    """A route's `dependencies=[needs("jobs:read")]`: refuses keys without the scope, before any of the body is read."""
    return Depends(_Needs(scope))


def declared_scopes(route: APIRoute) -> list[Scope]:
    """The scopes that the route names."""
    return [one.dependency.scope for one in route.dependencies if isinstance(one.dependency, _Needs)]
