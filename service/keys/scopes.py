"""What an API key may do. Every route names one of these scopes; a key holds some of them, or a whole resource's, or all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Literal

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "datasets:read",
    "datasets:write",
    "studies:read",
    "studies:write",
    "webhooks:read",
    "webhooks:write",
    "workers:read",
    "usage:read",
    "keys:admin",
]

SCOPES: Final[dict[Scope, str]] = {
    "jobs:read": "read jobs, adaptations and their results, and what a spec may name",
    "jobs:write": "submit, cancel, pause, resume, extend and delete jobs; adapt",
    "datasets:read": "read data sets and download them",
    "datasets:write": "upload and delete data sets",
    "studies:read": "read studies and their reports",
    "studies:write": "submit, cancel and delete studies",
    "webhooks:read": "read webhooks and their deliveries",
    "webhooks:write": "make, change and delete webhooks",
    "workers:read": "read the list of workers, and metrics for Prometheus",
    "usage:read": "read the workspace's quotas and their use",
    "keys:admin": "list, make and revoke API keys",
}

EVERYTHING: Final = "*"
_WILDCARDS: Final = (EVERYTHING, *dict.fromkeys(f"{scope.partition(':')[0]}:*" for scope in SCOPES))
GRANTS: Final[tuple[str, ...]] = (*SCOPES, *_WILDCARDS)
"""What a key may hold: a scope, all scopes of a resource (`jobs:*`), or all (`*`), including scopes of later versions."""


def allows(held: Collection[str], wanted: str) -> bool:
    """Whether a key with these grants has the scope `wanted`, or may give it to another key."""
    return any(grant in held for grant in (EVERYTHING, f"{wanted.partition(':')[0]}:*", wanted))


def beyond(held: Collection[str], wanted: Iterable[str]) -> list[str]:
    """The wanted grants that a key with the grants `held` can't give to another key."""
    return [grant for grant in wanted if not allows(held, grant)]
