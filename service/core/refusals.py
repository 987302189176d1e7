"""What the stores refuse. Each refusal has the machine word that the API answers with, and a message that names the remedy."""

from __future__ import annotations

from typing import ClassVar


class Refused(Exception):
    """The request can't be done, through no fault of the service. Never raised itself."""

    code: ClassVar[str]
    """A key of `service.http.problems.CODES`."""
    retry_after: ClassVar[int | None] = None
    """Seconds after which the same request may succeed, where that is known."""


class WrongState(Refused):
    """The state of what was named doesn't allow it."""

    code = "wrong_state"


class InUse(Refused):
    """Something else that hasn't ended still needs it."""

    code = "in_use"


class TooMany(Refused):
    """The workspace has as many as it may have."""

    code = "too_many"


class BadReference(Refused):
    """A spec names something that the workspace doesn't have. `field` is the path to it in the spec."""

    code = "invalid"

    def __init__(self, field: tuple[str, ...], detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail
