"""Migrations of a database in use: every revision goes up and down over rows, and loses nothing but what it names.

`migration_rows.ROWS` has the rows that become possible with each revision. A walk inserts them on its way up, one revision at
a time, and then goes down again, doing each step three times: down, up, and down. After each step every row that was there must
still be there, unchanged in the columns that are on both sides, and the schema must be the one that was at this revision before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.core.database import engine
from service.tables import METADATA
from tests.service.migration_rows import FILLS, ROWS
from tests.support.databases import alembic

Rows = dict[str, dict[tuple[str | None, ...], dict[str, str | None]]]
"""Table → primary key → column → value, as Postgres writes it: so even the order of a JSON's fields is compared."""


class Sometime(str):
    """Equal to any time, and not to null."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = str.__hash__


def data_sets_other_than_good_ratings_go(rows: Rows) -> None:
    gone = {
        row["id"]
        for row in rows["datasets"].values()
        if row["state"] != "ready" or '"ratings"' not in str(row["families"])
    }
    for one in gone:
        del rows["datasets"][one,]
    for job in rows["jobs"].values():
        if job["dataset_id"] in gone:
            job["dataset_id"] = None


def narrower_keys_are_revoked(rows: Rows) -> None:
    narrower = [row for row in rows["api_keys"].values() if row["scopes"] != '["*"]' or row["expires_at"]]
    for row in narrower:
        row["revoked_at"] = row["revoked_at"] or Sometime()


BY_DESIGN: Mapping[tuple[str, str], Callable[[Rows], None]] = {
    ("0003", "down"): data_sets_other_than_good_ratings_go,
    ("0004", "down"): narrower_keys_are_revoked,
}
"""Revision and direction → what the step does, by design, to the rows of tables and columns that both sides have."""


class Database:
    """A database that Alembic takes up and down in this process: to start one for each step would take a minute."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._config = alembic()
        self._names: dict[str, str] = {}

    def revisions(self) -> list[str]:
        """From the first to the newest."""
        found = ScriptDirectory.from_config(self._config).walk_revisions()
        return [script.revision for script in found][::-1]

    def up(self, revision: str = "head") -> None:
        command.upgrade(self._config, revision)

    def down(self, revision: str = "base") -> None:
        command.downgrade(self._config, revision)

    def insert(self, statements: str) -> None:
        with engine(self.url).begin() as connection:
            for statement in filter(str.strip, statements.split(";\n")):
                connection.exec_driver_sql(self._with_ids(statement))

    def rows(self) -> Rows:
        with engine(self.url).connect() as connection:
            return {table: rows_of(connection, table) for table in tables(connection) - {"alembic_version"}}

    def schema(self) -> dict[str, set[tuple[Any, ...]]]:
        with engine(self.url).connect() as connection:
            return {what: {tuple(row) for row in connection.exec_driver_sql(query)} for what, query in SCHEMA.items()}

    def check_fills(self, revision: str) -> None:
        with engine(self.url).connect() as connection:
            for query in FILLS.get(revision, []):
                answers = list(connection.exec_driver_sql(self._with_ids(query)).scalars())
                assert answers, f"{revision}: no row to check: {query}"
                assert all(answers), f"{revision}: not so: {query}"

    def _with_ids(self, statement: str) -> str:
        def id_of(match: re.Match[str]) -> str:
            number = len(self._names) + 1
            return self._names.setdefault(match[1], f"'0198f000-0000-7000-8000-{number:012x}'::uuid")

        return re.sub(r"(?<![:\w\"]):([a-z]\w*)", id_of, statement)


@pytest.fixture
def database(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("AMAML_DATABASE_URL", empty_database_url)
    return Database(empty_database_url)


def tables(connection: Connection) -> set[str]:
    found = connection.exec_driver_sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return set(found.scalars())


def rows_of(connection: Connection, table: str) -> dict[tuple[str | None, ...], dict[str, str | None]]:
    about = connection.exec_driver_sql(
        "SELECT attname, attnum = ANY (conkey) FROM pg_attribute JOIN pg_constraint ON conrelid = attrelid AND contype = 'p' "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        (table,),
    ).all()
    columns, key = [name for name, _ in about], [name for name, is_key in about if is_key]
    written = ", ".join(f'"{name}"::text' for name in columns)
    found = connection.exec_driver_sql(f"SELECT {written} FROM {table}")  # noqa: S608
    rows = [dict(zip(columns, row, strict=True)) for row in found]
    return {tuple(row[name] for name in key): row for row in rows}


SCHEMA = {
    "columns": (
        "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attstorage, attidentity, "
        "pg_get_expr(adbin, adrelid) FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
        "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
        "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped"
    ),
    "indexes": "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace"
    ),
    "functions": (
        "SELECT proname, pg_get_functiondef(oid), proacl::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    ),
    "triggers": "SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal",
    "policies": (
        "SELECT tablename, policyname, permissive, roles::text, cmd, qual, with_check FROM pg_policies "
        "WHERE schemaname = 'public'"
    ),
    "relations": (
        "SELECT relname, relkind, relrowsecurity, relforcerowsecurity FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace"
    ),
    "types": (
        "SELECT typname, typtype FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype NOT IN ('b', 'c')"
    ),
    "privileges": (
        "SELECT relname, NULL, grantee::regrole::text, privilege_type, is_grantable FROM pg_class, "
        "aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))) "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'v') UNION ALL "
        "SELECT relname, attname, grantee::regrole::text, privilege_type, is_grantable FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid, aclexplode(attacl) WHERE relnamespace = 'public'::regnamespace"
    ),
    "default privileges": "SELECT defaclnamespace::regnamespace::text, defaclobjtype, defaclacl::text FROM pg_default_acl",
}
"""What is compared of two schemas: all but the order of columns, which a step down and up again changes."""


def check_filled(database: Database, revision: str) -> None:
    """Every table has rows, some of them with something in each column, and each state that a table allows occurs."""
    remedy = f"add it to ROWS[{revision!r}] of tests/service/migration_rows.py, with several states and with what it refers to"
    rows = database.rows()
    empty = sorted(table for table, found in rows.items() if not found)
    assert not empty, f"no row was migrated of {', '.join(empty)}: {remedy}"
    for table, column, *_ in sorted(database.schema()["columns"], key=str):
        some = table == "alembic_version" or any(row[column] is not None for row in rows[table].values())
        assert some, f"no row has anything in {table}.{column}: {remedy}"
    for table, _, definition, _ in database.schema()["constraints"]:
        if choice := re.fullmatch(r"CHECK \(\((\w+) = ANY \(ARRAY\[(.*)\]\)\)\)", definition):
            column, allowed = choice[1], set(re.findall(r"'(\w+)'::text", choice[2]))
            missing = allowed - {row[column] for row in rows[table].values()}
            assert not missing, f"no row of {table} has the {column} {', '.join(sorted(missing))}: {remedy}"


def step(database: Database, revision: str, direction: str, target: str) -> None:
    """Takes the revision's step, and checks that what was there is there, unchanged in the columns that are on both sides."""
    expected = database.rows()
    BY_DESIGN.get((revision, direction), lambda _: None)(expected)
    database.up(target) if direction == "up" else database.down(target)
    found = database.rows()
    for table in expected.keys() & found.keys():
        here, there = columns_of(expected[table]), columns_of(found[table])
        assert cut(found[table], here) == cut(expected[table], there), f"{revision} {direction}: {table}"
        assert direction == "down" or here <= there, f"{revision} drops columns of {table}: name it in BY_DESIGN"
    assert direction == "down" or expected.keys() <= found.keys(), f"{revision} drops a table: name it in BY_DESIGN"
    if direction == "up":
        database.check_fills(revision)


def columns_of(rows: Mapping[Any, Mapping[str, Any]]) -> set[str]:
    return {column for row in rows.values() for column in row}


def cut(rows: Mapping[Any, Mapping[str, Any]], columns: set[str]) -> dict[Any, dict[str, Any]]:
    return {key: {column: value for column, value in row.items() if column in columns} for key, row in rows.items()}


def test_rows_survive_every_step_up_and_every_step_down(database: Database) -> None:
    """And each step down leaves the schema that was there before the step up."""
    revisions = database.revisions()
    schemas = {}
    for revision in revisions:
        step(database, revision, "up", revision)
        database.insert(ROWS.get(revision, ""))
        check_filled(database, revision)
        schemas[revision] = database.schema()
    for below, revision in reversed(list(pairwise(["base", *revisions]))):
        step(database, revision, "down", below)
        assert below == "base" or database.schema() == schemas[below], f"the downgrade of {revision}"
        step(database, revision, "up", revision)
        assert database.schema() == schemas[revision], f"the upgrade to {revision}, again"
        step(database, revision, "down", below)
    check_nothing_is_left(database)


def check_nothing_is_left(database: Database) -> None:
    left = database.schema()
    assert {row[0] for row in left.pop("columns")} == {"alembic_version"}
    assert {row[0] for row in left.pop("relations")} == {"alembic_version", "alembic_version_pkc"}
    assert {row[0] for row in left.pop("indexes")} == {row[0] for row in left.pop("constraints")} == {"alembic_version"}
    granted = {(row[0], row[2]) for row in left.pop("privileges")}
    with engine(database.url).connect() as connection:
        user = connection.exec_driver_sql("SELECT current_user").scalar()
    assert granted == {("alembic_version", user)}
    assert left == {what: set() for what in left}


def test_rows_of_the_first_release_come_to_the_newest_in_one_go(database: Database) -> None:
    """All revisions then run in one transaction, in which what one has changed is still pending when the next one begins."""
    first, *later = database.revisions()
    database.up(first)
    database.insert(ROWS[first])
    step(database, later[-1], "up", "head")
    for revision in later:
        database.check_fills(revision)


def test_all_the_way_down_with_rows_and_up_again_is_as_if_new(database: Database) -> None:
    database.up()
    straight = database.schema()
    database.down()
    for revision in database.revisions():
        database.up(revision)
        database.insert(ROWS.get(revision, ""))
    database.down()
    check_nothing_is_left(database)
    database.up()
    assert database.schema() == straight
    assert all(found == {} for found in database.rows().values())


def test_the_tables_of_the_code_are_those_of_the_newest_revision(database: Database) -> None:
    """Beyond `alembic check`, which compares neither CHECK constraints nor the conditions of partial indexes."""
    database.up()
    migrated = database.schema()
    database.down()
    METADATA.create_all(engine(database.url))
    declared = database.schema()
    for what in ("indexes", "constraints", "columns"):
        # How bytes are stored is said by the revision alone.
        assert {without_storage(row) for row in declared[what]} == {without_storage(row) for row in migrated[what]}, (
            what
        )


def without_storage(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:4], "", *row[5:]) if row[:2] == ("blob_chunks", "data") else row


def test_the_rows_here_are_of_revisions_that_exist(database: Database) -> None:
    assert {*ROWS, *FILLS, *(revision for revision, _ in BY_DESIGN)} <= set(database.revisions())
