"""Row-level policies for new tables: the second wall between workspaces (service.core.row_security).

A revision that makes a table calls one of these for it; a test refuses tables without a policy. What is here must go on
meaning the same: revisions that were released call it.
"""

from __future__ import annotations

from typing import Final

from alembic import op

ROLE: Final = "amaml_api"
_WORKSPACE: Final = "nullif(current_setting('amaml.workspace', true), '')::uuid"


def confine(table: str, column: str = "workspace_id") -> None:
    """The API's role sees and writes only rows whose `column` is its transaction's workspace."""
    _protect(table, f"{column} = {_WORKSPACE}")


def confine_children(table: str, column: str, parent: str) -> None:
    """The same for rows that belong to a row of `parent`, itself confined, by its id in `column`."""
    _protect(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.id = {table}.{column})")


def release(table: str) -> None:
    """Takes the policies away."""
    op.execute(f"DROP POLICY workspace ON {table}")
    op.execute(f"DROP POLICY owner ON {table}")
    op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")


def _protect(table: str, condition: str) -> None:
    # Forced: were the API's role ever made the tables' owner, as by a restore without owners, it would stay confined.
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY workspace ON {table} TO {ROLE} USING ({condition})")
    op.execute(f"CREATE POLICY owner ON {table} TO CURRENT_USER USING (true)")
