"""The table of legal steps as Postgres itself enforces it: the source of the trigger on `jobs`.

The revisions under migrations/ hold this text as it was when they were written; a test compares what the newest of them
installs with what is generated here, so a changed table asks for a new revision.
"""

from __future__ import annotations

from typing import Final

from service.jobs.transitions import FINAL, STATES, TRANSITIONS

OUTCOME: Final = ("initialization_blob_id", "ended_at", "attempt")
"""Columns that an ended job's row keeps as long as it has ended, beside its state."""


def function_body() -> str:
    """PL/pgSQL that refuses illegal steps, changes of an ended job's outcome, and a fence that goes back."""
    steps = ",\n        ".join(f"('{source}', '{target}')" for source, target in TRANSITIONS)
    final = ", ".join(f"'{state}'" for state in STATES if state in FINAL)
    new, old = (", ".join(f"{row}.{column}" for column in OUTCOME) for row in ("NEW", "OLD"))
    return f"""
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'queued' THEN
            RAISE check_violation USING MESSAGE = format('a new job is queued, not %s', NEW.state);
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        {steps}
    ) THEN
        RAISE check_violation USING MESSAGE = format('job %s is %s and can''t become %s', OLD.id, OLD.state, NEW.state);
    END IF;
    IF OLD.state IN ({final}) AND NEW.state = OLD.state AND ({new}) IS DISTINCT FROM ({old}) THEN
        RAISE check_violation USING MESSAGE = format('job %s has %s: its outcome stays as it is', OLD.id, OLD.state);
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE check_violation USING MESSAGE = format('job %s: its fence can''t go back from %s', OLD.id, OLD.attempt);
    END IF;
    RETURN NEW;
END
"""
