"""The life of a row: its states, and every legal step from one to another. Each resource declares one such table.

The queries check it before they write, and a trigger that is generated from it makes Postgres refuse every other step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class IllegalTransition(Exception):
    """A step that the table doesn't have."""

    def __init__(self, noun: str, source: str, target: str) -> None:
        super().__init__(f"a {noun} that is {source} can't become {target}")
        self.source, self.target = source, target


@dataclass(frozen=True)
class Transitions:
    """The steps of a `noun`, from the state `initial` on."""

    noun: str
    initial: str
    steps: Mapping[Any, str]
    """(source, target) → when it happens."""
    final: tuple[str, ...]
    """States in which the outcome can't change."""
    outcome: tuple[str, ...]
    """The columns that hold it."""
    fenced: bool = True
    """It has a column `attempt`, the fence, which only grows."""

    def check(self, source: str, target: str) -> None:
        """Raises IllegalTransition unless the table has the step."""
        if (source, target) not in self.steps:
            raise IllegalTransition(self.noun, source, target)

    def guard(self) -> str:
        """PL/pgSQL of the table's trigger: refuses illegal steps, a changed outcome, and a fence that goes back.

        The revisions under migrations/ hold this text as it was when they were written; a test compares what the newest of
        them installs with what is generated here, so a changed table needs a new revision.
        """
        steps = ",\n        ".join(f"('{source}', '{target}')" for source, target in self.steps)
        final = ", ".join(f"'{state}'" for state in self.final)
        new, old = (", ".join(f"{row}.{column}" for column in self.outcome) for row in ("NEW", "OLD"))
        fence = f"""
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('{self.noun} %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;"""
        return f"""
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> '{self.initial}' THEN
            RAISE check_violation USING MESSAGE = format('a new {self.noun} is {self.initial}, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        {steps}
    ) THEN
        RAISE check_violation USING MESSAGE = format('{self.noun} %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ({final}) AND NEW.state = OLD.state AND ({new}) IS DISTINCT FROM ({old}) THEN
        RAISE check_violation USING MESSAGE = format('{self.noun} %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;{fence if self.fenced else ""}
    RETURN NEW;
END
"""
