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


def test_every_guarantee_names_tests_that_exist() -> None:
    page = ROOT / "docs" / "guarantees.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\| [^-]", line)]
    promises = [row for row in rows if "](../tests/" in row]
    untested = [row for row in rows if row not in promises and not row.startswith(("| promise |", "| fails |"))]
    assert [row.rpartition("| ")[2] for row in untested] == ["none: back up the database |"]
    for row in promises:
        for path, names in re.findall(r"\]\(\.\./(tests/[^)]+)\)((?:,? `test_\w+`)+)", row):
            source = (ROOT / path).read_text(encoding="utf-8")
            for name in re.findall(r"`(test_\w+)`", names):
                assert f"def {name}(" in source, f"{path} has no {name}"
