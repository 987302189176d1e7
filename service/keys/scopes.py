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
    "jobs:read": "look at jobs, adaptations and what they leave, and at what a spec may name",
    "jobs:write": "submit, steer and delete jobs; adapt",
    "datasets:read": "look at data sets and download them",
    "datasets:write": "upload and delete data sets",
    "studies:read": "look at studies and their reports",
    "studies:write": "start, steer and delete studies",
    "webhooks:read": "look at webhooks and their deliveries",
    "webhooks:write": "make, change and delete webhooks",
    "workers:read": "look at the installation: its workers, and metrics for Prometheus",
    "usage:read": "look at the workspace's quotas and what is used of them",
    "keys:admin": "list, make and revoke API keys",
}

EVERYTHING: Final = "*"
_WILDCARDS: Final = (EVERYTHING, *dict.fromkeys(f"{scope.partition(':')[0]}:*" for scope in SCOPES))
GRANTS: Final[tuple[str, ...]] = (*SCOPES, *_WILDCARDS)
"""What a key may hold: a scope, all scopes of a resource (`jobs:*`), or everything (`*`), later versions' scopes included."""


def allows(held: Collection[str], wanted: str) -> bool:
    """Whether a key that holds these grants has the scope, or may hand the grant, `wanted`."""
    return any(grant in held for grant in (EVERYTHING, f"{wanted.partition(':')[0]}:*", wanted))


def beyond(held: Collection[str], wanted: Iterable[str]) -> list[str]:
    """Those of the wanted grants that a key with these can't hand on."""
    return [grant for grant in wanted if not allows(held, grant)]
