"""Migrations of a database in use: every revision goes up and down over rows, and loses nothing but what it names.

ROWS has the rows that become possible with each revision. A walk inserts them on its way up, one revision at a time, and then
goes down again, doing each step three times: down, up, and down. After each step every row that was there must still be there,
unchanged in the columns that are on both sides, and the schema must be the one that was at this revision before.
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
from tests.support.databases import alembic

FIRST_RELEASE = """
INSERT INTO workspaces (id, name) VALUES (:lab, 'lab'), (:other, 'other');
INSERT INTO workers (id, host, pid, devices) VALUES (:worker, 'here', 4711, '["cpu", "cuda"]');
INSERT INTO leaderships VALUES ('reconciler', :worker, now() + interval '10 seconds');
INSERT INTO outbox (kind, payload, sent_at) VALUES ('wake', '{}', NULL), ('wake', '{"job": 1}', now());
INSERT INTO api_keys (id, workspace_id, name, key_hash, prefix, last_used_at, revoked_at) VALUES
    (:key_1, :lab, 'used', 'a', 'amaml_a', now(), NULL), (:key_2, :other, 'revoked', 'b', 'amaml_b', NULL, now());
INSERT INTO blobs (id, sha256, size_bytes) VALUES
    (:ratings_1, 'aa', 3), (:ratings_2, 'bb', 3), (:ratings_3, 'cc', 3), (:theta, 'dd', 6), (:checkpoint, 'ee', 3),
    (:unfinished, NULL, 0);
INSERT INTO blob_chunks VALUES
    (:ratings_1, 0, 'abc'), (:ratings_2, 0, 'def'), (:ratings_3, 0, 'ghi'), (:theta, 0, '\\x000102'), (:theta, 1, '\\xfffefd'),
    (:checkpoint, 0, 'xyz');
INSERT INTO datasets (id, workspace_id, name, format, sha256, bytes, rows, tasks, state, blob_id) VALUES
    (:dataset_1, :lab, 'films', 'csv', 'aa', 3, 10, 2, 'ready', :ratings_1),
    (:dataset_2, :lab, 'films', 'csv', 'bb', 3, 20, 3, 'ready', :ratings_2),
    (:dataset_3, :other, '', 'movielens-1m', 'cc', 3, 30, 4, 'ready', :ratings_3);
INSERT INTO idempotency_keys (workspace_id, key, request_sha256, response) VALUES
    (:lab, 'mine', 'ab', '{"z": 1, "a": [1.0, null]}'), (:other, 'mine', 'cd', '{}');
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, state, lease_expires_at)
SELECT id, :lab, state, '{"who": "me"}', '{"z": 1, "a": 1e400}', 'ab', 'ratings', 'amaml', 'cpu', 100, state,
    CASE WHEN state IN ('running', 'pausing', 'cancelling') THEN now() + interval '1 minute' END
FROM (VALUES (:queued, 'queued'), (:running, 'running'), (:pausing, 'pausing'), (:paused, 'paused'),
    (:cancelling, 'cancelling'), (:succeeded, 'succeeded'), (:failed, 'failed'), (:cancelled, 'cancelled')
) AS made (id, state);
UPDATE jobs SET dataset_id = :dataset_1, init_from_id = :succeeded WHERE id = :queued;
UPDATE jobs SET worker_id = :worker, attempt = 2, started_at = now(), progress_at = now(), phase = 'training', iteration = 7,
    eta_seconds = 1.5, metrics = '{"meta_loss": 0.5}', runtime = '{"threads": 2}', last_seq = 2 WHERE id = :running;
UPDATE jobs SET initialization_blob_id = :theta, parameters = 3, ended_at = now(), attempt = 1, dataset_id = :dataset_3,
    workspace_id = :other WHERE id = :succeeded;
UPDATE jobs SET init_from_id = NULL WHERE id = :queued;
UPDATE jobs SET init_from_id = :failed WHERE id = :cancelled;
UPDATE jobs SET status_reason = 'diverged', status_detail = 'Take smaller steps.', ended_at = now() WHERE id = :failed;
INSERT INTO attempts (job_id, number, worker_id, host, started_at, ended_at, reason, detail) VALUES
    (:running, 1, :worker, 'there', now() - interval '3 hours', now() - interval '2 hours', 'worker_lost', 'It was lost.'),
    (:running, 2, :worker, 'here', now(), NULL, NULL, NULL),
    (:succeeded, 1, :worker, 'here', now() - interval '1 minute', now(), 'succeeded', NULL),
    (:failed, 1, :worker, 'here', now() - interval '9 days', now() - interval '8 days', 'failed', NULL);
INSERT INTO checkpoints (job_id, step, attempt, blob_id) VALUES (:running, 5, 1, :checkpoint);
INSERT INTO events (job_id, seq, kind, data) VALUES
    (:running, 1, 'state', '{"state": "queued"}'), (:running, 2, 'progress', '{"iteration": 7}');
INSERT INTO metrics VALUES (:running, 'meta_loss', 1, 'NaN'), (:running, 'meta_loss', 2, 0.5);
"""

# From 0002 on a job begins as queued and takes the legal steps alone.
GUARDED = """
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations)
VALUES (:guarded, :lab, '', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1);
UPDATE jobs SET state = 'running', attempt = 1, lease_expires_at = now() WHERE id = :guarded;
UPDATE jobs SET state = 'succeeded', lease_expires_at = NULL, ended_at = now() WHERE id = :guarded;
"""

CHECKED = """
INSERT INTO blobs (id, sha256, size_bytes) VALUES (:table_1, 'f1', 1), (:table_2, 'f2', 1), (:table_3, 'f3', 1),
    (:images, 'f4', 1);
INSERT INTO datasets (id, workspace_id, name, version, format, families, sha256, bytes, rows, tasks, state, blob_id,
    status_detail, report, attempt, lease_expires_at, checked_at) VALUES
    (:waiting, :lab, 'films', 3, 'csv', '["ratings", "table"]', 'f1', 1, NULL, NULL, 'pending', :table_1,
        NULL, NULL, 1, now() + interval '1 minute', NULL),
    (:good, :lab, 'films', 4, 'csv', '["ratings"]', 'f2', 1, 5, 1, 'ready', :table_2, NULL, '{"tasks": 1}', 1, NULL, now()),
    (:bad, :other, '', 1, 'csv', '["ratings"]', 'f3', 1, NULL, NULL, 'invalid', :table_3,
        'Line 2 is empty.', '{}', 2, NULL, now()),
    (:shapes, :lab, 'shapes', 1, 'safetensors', '["images"]', 'f4', 1, 9, 3, 'ready', :images, NULL, '{}', 1, NULL, now());
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, dataset_id)
VALUES (:waits, :lab, '', '{}', '{}', '', 'ratings', 'amaml', 'auto', 1, :waiting);
"""

SCOPED = """
INSERT INTO api_keys (id, workspace_id, name, key_hash, prefix, scopes, expires_at) VALUES
    (:key_3, :lab, 'everything', 'c', 'amaml_c', '["*"]', NULL), (:key_4, :lab, 'reader', 'd', 'amaml_d', '["jobs:read"]', NULL),
    (:key_5, :lab, 'expires', 'e', 'amaml_e', '["*"]', now() + interval '1 day');
"""

# An event makes a delivery of its own, by the trigger that comes with this revision.
WEBHOOKS = """
INSERT INTO webhooks (id, workspace_id, url, description, events, signature, secret, previous_secret, previous_until, public_key,
    enabled, disabled_reason, failures, failing_since) VALUES
    (:webhook_1, :lab, 'https://example.org/1', 'mine', '["job.running"]', 'hmac', 's', 'before', now(), NULL, true,
        NULL, 0, NULL),
    (:webhook_2, :other, 'https://example.org/2', '', '[]', 'ed25519', 's', NULL, NULL, 'public', false, 'gone', 5, now());
INSERT INTO webhook_deliveries (id, webhook_id, workspace_id, type, body, state, attempt, tries, lease_expires_at,
    ended_at) VALUES
    (:delivery_1, :webhook_1, :lab, 'job.running', '{"type": "job.running"}', 'pending', 1, 1, now(), NULL),
    (:delivery_2, :webhook_1, :lab, 'job.running', '{ }', 'succeeded', 1, 1, NULL, now()),
    (:delivery_3, :webhook_2, :other, 'job.failed', '{}', 'failed', 1, 1, NULL, now());
INSERT INTO webhook_attempts (delivery_id, number, seconds, status, error, response) VALUES
    (:delivery_1, 1, NULL, NULL, NULL, NULL), (:delivery_2, 1, 0.1, 200, NULL, 'fine'),
    (:delivery_3, 1, 5, NULL, 'No answer.', '');
INSERT INTO events (job_id, seq, kind, data) VALUES (:running, 3, 'state', '{"state": "running"}');
"""

STUDIES = """
INSERT INTO studies (id, workspace_id, name, base, grid, concurrency, state, ended_at) VALUES
    (:study_1, :lab, 'grid', '{"z": 1, "a": 2}', '{"/b": [1, 2], "/a": [3]}', 1, 'running', NULL),
    (:study_2, :lab, '', '{}', '{}', 2, 'cancelling', NULL), (:study_3, :other, '', '{}', '{}', 2, 'finished', now()),
    (:study_4, :other, '', '{}', '{}', 2, 'cancelled', now());
INSERT INTO jobs (id, workspace_id, name, tags, spec, spec_sha256, family, method, device, iterations, study_id, cell_number,
    cell, held, status_reason) VALUES
    (:cell_1, :lab, 'cell', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1, :study_1, 0, '{"/b": 1, "/a": 3}', false, NULL),
    (:cell_2, :lab, 'cell', '{}', '{}', '', 'sinusoid', 'amaml', 'auto', 1, :study_1, 1, '{"/b": 2, "/a": 3}', true,
        'study_turn');
INSERT INTO evaluations VALUES (:running, 5, 'nrmse', false, '{"flow": [0.1, 0.2]}', '{"mean": [1]}', NULL),
    (:succeeded, 100, 'accuracy', true, '{}', '{}', '{"times": [0, 1]}');
"""

WALLED_OFF = """
INSERT INTO blobs (id, workspace_id, sha256, size_bytes) VALUES (:weights, :lab, 'ff', 0), (:nobodys, NULL, NULL, 0);
"""

# The second webhook message is the newer function's, which names the study.
NAMED_STUDIES = """
INSERT INTO events (job_id, seq, kind, data) VALUES (:running, 4, 'state', '{"state": "running"}');
"""

ADAPTATIONS = """
INSERT INTO adaptations (id, workspace_id, job_id, by, request, state, status_reason, status_detail, result, weights_blob_id,
    attempt, lease_expires_at, started_at, ended_at) VALUES
    (:adaptation_1, :other, :succeeded, 'flow', '{"z": 1, "a": 2}', 'queued', NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL),
    (:adaptation_2, :other, :succeeded, 'flow', '{}', 'running', NULL, NULL, NULL, NULL, 1, now(), now(), NULL),
    (:adaptation_3, :other, :succeeded, 'flow', '{}', 'succeeded', NULL, NULL, '{"loss": 1}', :weights, 1, NULL, now(), now()),
    (:adaptation_4, :lab, :guarded, 'finetune', '{}', 'failed', 'diverged', 'Try less.', NULL, NULL, 3, NULL, now(), now());
"""

QUOTAS = """
UPDATE workspaces SET quotas = '{"queued_jobs": 5, "stored_bytes": null}' WHERE id = :other;
UPDATE jobs SET estimated_seconds = 12.5 WHERE id = :queued;
INSERT INTO compute_use VALUES (:lab, date_trunc('hour', now()) + interval '1 hour', 7.5);
"""

TRAINERS = """
UPDATE attempts SET trainer_pid = 4712 WHERE job_id = :running AND number = 2;
"""

GPUS = """
UPDATE workers SET gpu = '{"name": "NVIDIA H100", "memory_bytes": 85899345920, "uuid": "GPU-1"}' WHERE id = :worker;
UPDATE jobs SET gpu = 'NVIDIA H100', device = 'cuda' WHERE id = :queued;
"""

# From 0016 on these take the legal steps alone, too.
GUARDED_TOO = """
INSERT INTO blobs (id, sha256, size_bytes) VALUES (:late, 'f5', 1);
INSERT INTO datasets (id, workspace_id, name, format, families, sha256, bytes, blob_id)
VALUES (:late_data, :lab, '', 'csv', '["table"]', 'f5', 1, :late);
UPDATE datasets SET state = 'ready', report = '{}', checked_at = now() WHERE id = :late_data;
INSERT INTO adaptations (id, workspace_id, job_id, by, request) VALUES (:adaptation_5, :other, :succeeded, 'flow', '{}');
UPDATE adaptations SET state = 'running', attempt = 2, tries = 1, lease_expires_at = now() WHERE id = :adaptation_5;
"""

ROWS = {
    "0001": FIRST_RELEASE,
    "0002": GUARDED,
    "0003": CHECKED,
    "0004": SCOPED,
    "0005": WEBHOOKS,
    "0006": STUDIES,
    "0007": WALLED_OFF,
    "0008": NAMED_STUDIES,
    "0009": ADAPTATIONS,
    "0010": QUOTAS,
    "0012": TRAINERS,
    "0014": GPUS,
    "0016": GUARDED_TOO,
}
"""Revision → statements that insert what becomes possible with it; none where it adds no tables, columns or states.

A name after a colon is the id of a row, the same one everywhere.
"""

FILLS = {
    "0003": [
        """SELECT families = '["ratings"]' AND checked_at = created_at AND attempt = 0 FROM datasets""",
        "SELECT version = (SELECT count(*) FROM datasets AS before WHERE before.workspace_id = datasets.workspace_id "
        "AND before.name = datasets.name AND before.id <= datasets.id) FROM datasets WHERE name <> ''",
        "SELECT version = 1 FROM datasets WHERE name = ''",
    ],
    "0004": ["""SELECT scopes = '["*"]' AND expires_at IS NULL FROM api_keys"""],
    "0006": ["SELECT NOT held AND study_id IS NULL AND cell_number IS NULL FROM jobs"],
    "0007": [
        "SELECT blobs.workspace_id = datasets.workspace_id FROM blobs JOIN datasets ON datasets.blob_id = blobs.id",
        "SELECT blobs.workspace_id = jobs.workspace_id FROM blobs JOIN jobs ON initialization_blob_id = blobs.id",
        "SELECT blobs.workspace_id = jobs.workspace_id FROM checkpoints JOIN blobs ON blobs.id = blob_id "
        "JOIN jobs ON jobs.id = job_id",
        "SELECT workspace_id IS NULL FROM blobs WHERE sha256 IS NULL",
    ],
    "0010": [
        "SELECT quotas = '{}' FROM workspaces",
        "SELECT estimated_seconds IS NULL FROM jobs",
        # An hour of the lost attempt and a minute of the one that succeeded; the one of last week is over.
        "SELECT sum(seconds) = 3600 FROM compute_use WHERE workspace_id = :lab",
        "SELECT sum(seconds) = 60 FROM compute_use WHERE workspace_id = :other",
    ],
    "0012": ["SELECT trainer_pid IS NULL FROM attempts"],
    "0013": ["SELECT tries = attempt FROM datasets"],
    "0014": ["SELECT gpu IS NULL FROM workers", "SELECT gpu IS NULL FROM jobs"],
    "0016": ["SELECT coalesce(bool_and(tries = attempt), true) FROM adaptations"],
}
"""Revision → what its upgrade makes of the rows that were there, as queries whose every row must be true."""

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
    remedy = f"add it to ROWS[{revision!r}] in {__name__}, with several states and with what it refers to"
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
