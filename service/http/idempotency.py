"""The Idempotency-Key of a request, which has it done once and answered the same each time that it is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Final, Generic, NamedTuple, TypeVar

from fastapi import Depends, Header
from pydantic import BaseModel
from sqlalchemy.orm import Session

from service.core import idempotency
from service.core.database import transaction
from service.core.principal import Principal
from service.http.problems import Problem

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

DocumentT = TypeVar("DocumentT", bound=BaseModel)


async def _key(
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Any text of your own. The same request, sent again with the same key, is not done again: its answer "
            "is that of the first.",
        ),
    ] = None,
) -> str | None:
    """Raises the 400 problem for a malformed key."""
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("bad_header", "Idempotency-Key must be 1 to 255 visible ASCII characters: a UUID, for example.")
    return key


Key = Annotated[str | None, Depends(_key)]
"""To be named after an operation's body, so that what is wrong with the body is answered first."""


class Answered(NamedTuple, Generic[DocumentT]):
    document: DocumentT
    replayed: bool
    """It is the answer to an earlier request with the same key."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Idempotency-Replayed": "true"} if self.replayed else {}


def once(
    caller: Principal,
    key: str | None,
    request_sha256: Callable[[], str],
    model: type[DocumentT],
    do: Callable[[Session], DocumentT],
) -> Answered[DocumentT]:
    """Does the request and keeps its answer, in one transaction; or gives the answer of the first request with this key.

    `request_sha256` is what tells one request from another, and is asked for only where there is a key. Raises what `do`
    raises, and idempotency's InFlight and Mismatch.
    """
    digest = None if key is None else request_sha256()
    with transaction() as session:
        if key is None or digest is None:
            return Answered(do(session), replayed=False)
        stored = idempotency.take(session, caller.workspace_id, key, digest)
        if stored is not None:
            return Answered(model.model_validate(stored), replayed=True)
        document = do(session)
        idempotency.keep(session, caller.workspace_id, key, json.loads(document.model_dump_json()))
        return Answered(document, replayed=False)
