"""The picture of the states shows the table of legal steps, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from service.store.transitions import FINAL, TRANSITIONS

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_the_table() -> None:
    text = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +(\S+) --> (\S+?)(?::|$)", text, re.MULTILINE))
    ends = {(state, "[*]") for state in FINAL}
    assert drawn == {*TRANSITIONS, ("[*]", "queued"), *ends}
