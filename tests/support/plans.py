"""What Postgres does for the statements that a piece of code sends: how many there are, and how many rows they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event


@dataclass
class Statements:
    count: int = 0
    plans: list[dict[str, Any]] = field(default_factory=list)
    """Of each SELECT, as it was executed."""

    def rows(self, *tables: str) -> list[int]:
        """How many rows each step of the plans read that reads one of the tables, those that it passed over included."""
        steps = [step for plan in self.plans for step in _steps(plan) if step.get("Relation Name") in tables]
        return [step["Actual Loops"] * (step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) for step in steps]


@contextmanager
def watched(engine: Engine) -> Iterator[Statements]:
    """The statements that are sent as long as the block runs. Each SELECT is executed twice."""
    sent = Statements()

    def note(connection: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        sent.count += 1
        if statement.startswith(("SELECT", "WITH")):
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            row = cursor.fetchone()
            assert row is not None
            sent.plans.append(row[0][0]["Plan"])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def _steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _steps(child)
