"""Row-level security policies for new tables, the second barrier between workspaces (service.core.row_security).

A revision that creates a table calls one of these functions for it; a test fails for a table without a policy. The functions must
not change their effect, since released revisions call them.
"""

from __future__ import annotations

from typing import Final

from alembic import op

ROLE: Final = "amaml_api"
_WORKSPACE: Final = "nullif(current_setting('amaml.workspace', true), '')::uuid"


def confine(table: str, column: str = "workspace_id") -> None:
    """Lets the API's role read and write only rows whose `column` is the workspace of its transaction."""
    _protect(table, f"{column} = {_WORKSPACE}")


def confine_children(table: str, column: str, parent: str) -> None:
    """The same for rows that refer by `column` to a row of `parent`, which is itself confined."""
    _protect(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.id = {table}.{column})")


def release(table: str) -> None:
    """Removes the policies."""
    op.execute(f"DROP POLICY workspace ON {table}")
    op.execute(f"DROP POLICY owner ON {table}")
    op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")


def _protect(table: str, condition: str) -> None:
    # Forced, so that the API's role stays confined even if it becomes the tables' owner, as by a restore without owners.
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY workspace ON {table} TO {ROLE} USING ({condition})")
    op.execute(f"CREATE POLICY owner ON {table} TO CURRENT_USER USING (true)")
