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
    promises = rows("guarantees.md", "")
    untested = [row for row in promises if not named_tests(row)]
    assert [row.rpartition("| ")[2] for row in untested] == ["none: back up the database |"]
    assert len(promises) > 20


def test_every_hazard_names_tests_that_exist() -> None:
    hazards = rows("jobs.md", "## Known hazards of Celery")
    assert len(hazards) >= 5
    assert all(named_tests(row) for row in hazards)


def rows(page: str, after: str) -> list[str]:
    """Of the page's tables, from this heading on, without their heads."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = text[text.index(after) :].splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|--")}
    return [line for number, line in enumerate(lines) if re.match(r"\| [^-]", line) and number not in heads]


def named_tests(row: str) -> list[str]:
    """The tests that the row's last cell links; each is asserted to exist."""
    found = []
    cell = row.rstrip(" |").rpartition(" | ")[2]
    for path, names in re.findall(r"\]\(\.\./(tests/[^)]+)\)((?:,? `test_\w+`)+)", cell):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", names):
            assert f"def {name}(" in source, f"{path} has no {name}"
            found.append(name)
    return found
