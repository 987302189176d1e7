"""What API keys may do: which grants allow which scopes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.keys.scopes import GRANTS, SCOPES, allows, beyond


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        (["jobs:read"], "jobs:read", True),
        (["jobs:read"], "jobs:write", False),
        (["jobs:write"], "jobs:read", False),
        (["jobs:*"], "jobs:write", True),
        (["jobs:*"], "jobs:*", True),
        (["jobs:read", "jobs:write"], "jobs:*", False),
        (["*"], "keys:admin", True),
        (["*"], "*", True),
        (sorted(SCOPES), "*", False),
        ([], "jobs:read", False),
    ],
)
def test_grants(held: list[str], wanted: str, allowed: bool) -> None:
    assert allows(held, wanted) is allowed
    assert beyond(held, [wanted]) == ([] if allowed else [wanted])


def test_every_scope_has_a_wildcard_and_a_line_in_the_documentation() -> None:
    assert {f"{scope.partition(':')[0]}:*" for scope in SCOPES} < set(GRANTS)
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert [scope for scope in SCOPES if f"`{scope}`" not in text] == []
