"""The second wall: with the queries' own conditions gone, the database still shows the API one workspace alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from fastapi import Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from psycopg.errors import ForeignKeyViolation, InsufficientPrivilege
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from launcher.postgres import _binary
from service.adaptations import store as adaptations
from service.core import blobs, row_security
from service.core.database import engine, transaction
from service.jobs import progress
from service.jobs import store as jobs
from service.jobs.tables import Job
from service.keys import store as keys
from service.keys.authentication import authenticated
from service.main import build
from service.webhooks.tables import WebhookAttempt, WebhookDelivery
from tests.support.api import SPEC, Api, Tenant, client, new_tenant, submit
from tests.support.databases import ROOT, execute, url_text
from tests.support.jobs import claim, succeed

COMMON = {"alembic_version", "leaderships", "outbox", "workers"}
"""Of the installation, not of a workspace; what the API's role may do with them is tested by name."""

OWNED = {
    "workspaces": "SELECT id FROM workspaces",
    "blob_chunks": "SELECT workspace_id FROM blob_chunks JOIN blobs ON blobs.id = blob_id",
    "webhook_attempts": (
        "SELECT workspace_id FROM webhook_attempts JOIN webhook_deliveries AS delivery ON delivery.id = delivery_id"
    ),
    **{
        name: f"SELECT workspace_id FROM {name} JOIN jobs ON jobs.id = job_id"  # noqa: S608
        for name in ("attempts", "checkpoints", "evaluations", "events", "metrics")
    },
}
"""Of tables without a workspace column: the workspaces of their rows, by joins of this test's own."""

EVALUATION = {
    "step": 1, "metric": "nrmse", "higher_is_better": False, "scores": {"tuned": [0.5]},
    "curve": {"epochs": [0], "mean": [1.0], "error": [0.1]}, "along_flow": None,
}  # fmt: skip


def _tables(session: Session) -> set[str]:
    query = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return set(session.scalars(query))


@pytest.fixture
def filled(api: Api, store: str) -> tuple[Tenant, Tenant]:
    """Two workspaces with something in each table."""
    tenants = new_tenant(), new_tenant()
    for tenant in tenants:
        with client(api, tenant) as http:
            made = http.post("/v1/webhooks", json={"url": "https://1.1.1.1/hook"})
            assert made.status_code == 201, api.log.read_text()[-3000:]
            job = submit(http)
            http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": str(uuid4())})
            http.post("/v1/studies", json={"base": SPEC, "grid": {"/runtime/seed": [0]}}).raise_for_status()
            http.post("/v1/datasets", content=b"user,item,rating\n1,10,4.0\n1,11,2.5\n").raise_for_status()
            claim(job)
            checkpoint = blobs.write([b"checkpoint"])
            with transaction() as session:
                row = session.get_one(Job, UUID(job))
                progress.add_metrics(session, row, {"meta_loss": [(1, 0.5)]})
                progress.add_checkpoint(session, row, 1, checkpoint.blob_id)
                progress.add_evaluations(session, row, [EVALUATION])
            succeed(job, b"theta")
        with transaction() as session:
            delivery = select(WebhookDelivery.id).where(WebhookDelivery.workspace_id == tenant.workspace_id).limit(1)
            adaptations.submit(session, tenant.workspace_id, UUID(job), {"by": "flow"})
            session.add(WebhookAttempt(delivery_id=session.scalars(delivery).one(), number=1))
    return tenants


@pytest.fixture
def inside(filled: tuple[Tenant, Tenant]) -> Iterator[tuple[Tenant, Tenant]]:
    """What a request of the first workspace sees."""
    with row_security.confined():
        row_security.enter(filled[0].workspace_id)
        yield filled


def _unprotected(session: Session) -> set[str]:
    """Tables of which the API's role would see every row."""
    protected = session.scalars(
        text(
            "SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid "
            "WHERE relrowsecurity AND relforcerowsecurity "
            "AND polname = 'workspace' AND 'amaml_api'::regrole = ANY (polroles)"
        )
    )
    return _tables(session) - COMMON - set(protected)


def test_every_table_has_a_policy_or_is_common(store: str) -> None:
    with transaction() as session:
        assert {"jobs", "metrics", "blob_chunks", "workspaces"} < _tables(session)
        assert _unprotected(session) == set(), "call migrations.row_security.confine for each new table"


def test_a_table_without_a_policy_is_noticed(database_url: str) -> None:
    execute(make_url(database_url), "CREATE TABLE things (workspace_id uuid)")
    with transaction(database_url) as session:
        assert _unprotected(session) == {"things"}
    engine(database_url).dispose()


def _owners(session: Session, table: str) -> set[Any]:
    """The workspaces that the rows of the table belong to."""
    return set(session.scalars(text(OWNED.get(table, f"SELECT workspace_id FROM {table}"))))  # noqa: S608


def _rows(session: Session, table: str) -> int:
    return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)  # noqa: S608


def _workspace_tables() -> list[str]:
    with row_security.across_workspaces(), transaction() as session:
        return sorted(_tables(session) - COMMON)


def test_selects_without_any_condition_show_one_workspace(inside: tuple[Tenant, Tenant]) -> None:
    mine, other = inside
    for table in _workspace_tables():
        with row_security.across_workspaces(), transaction() as session:
            everything = _rows(session, table)
            assert {mine.workspace_id, other.workspace_id} <= _owners(session, table), f"put something into {table}"
        with transaction() as session:
            seen = _rows(session, table)
            assert _owners(session, table) == {mine.workspace_id}, table
            assert 0 < seen < everything, table


def test_nothing_is_seen_before_a_workspace_is_entered(filled: tuple[Tenant, Tenant]) -> None:
    with row_security.confined():
        for table in _workspace_tables():
            with transaction() as session:
                assert _rows(session, table) == 0, table


def test_updates_and_deletes_without_any_condition_touch_one_workspace(inside: tuple[Tenant, Tenant]) -> None:
    for table in _workspace_tables():
        with row_security.across_workspaces(), transaction() as session:
            column = session.scalar(
                text(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = :table "
                    "AND is_generated = 'NEVER' AND is_identity = 'NO' ORDER BY ordinal_position LIMIT 1"
                ),
                {"table": table},
            )
        for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):  # noqa: S608
            with Session(engine()) as session:
                row_security.apply(session)
                seen = _rows(session, table)
                assert _touched(session, statement) in (seen, None), (table, statement)
                session.rollback()


def _touched(session: Session, statement: str) -> int | None:
    """How many rows the statement changes; None where the role may not, or the workspace's own rows refer to these."""
    try:
        return int(session.execute(text(statement)).rowcount)  # type: ignore[attr-defined]
    except DBAPIError as error:
        if not isinstance(error.orig, InsufficientPrivilege | ForeignKeyViolation):
            raise
        return None


def test_rows_cannot_be_put_into_another_workspace(inside: tuple[Tenant, Tenant]) -> None:
    mine, other = inside
    theirs = {"other": str(other.workspace_id)}
    for statement in (
        "INSERT INTO idempotency_keys (workspace_id, key, request_sha256, response) VALUES (:other, 'k', '', '{}')",
        "INSERT INTO api_keys (workspace_id, name, key_hash, prefix, scopes) VALUES (:other, '', '', '', '[]')",
        "INSERT INTO blobs (workspace_id) VALUES (:other)",
        "UPDATE api_keys SET workspace_id = :other",
    ):
        with pytest.raises(ProgrammingError, match="row-level security"), transaction() as session:
            session.execute(text(statement), theirs)
    with transaction() as session:
        assert jobs.page(session, other.workspace_id, jobs.Filter(), None, 10) == []
        assert keys.page(session, mine.workspace_id, None, 10) != []


def test_the_role_may_not_write_what_is_the_installations(inside: tuple[Tenant, Tenant]) -> None:
    for statement in (
        "UPDATE workspaces SET name = 'x'", "DELETE FROM workers", "SELECT * FROM leaderships", "SELECT payload FROM outbox",
        "DELETE FROM alembic_version", "CREATE TABLE mine (id int)",
    ):  # fmt: skip
        with pytest.raises(ProgrammingError, match="permission denied"), transaction() as session:
            session.execute(text(statement))


def test_the_wall_ends_with_the_transaction(inside: tuple[Tenant, Tenant]) -> None:
    with transaction() as session:
        assert session.scalar(text("SELECT current_user")) == row_security.ROLE
    with engine().connect() as connection:
        login, setting = connection.execute(text("SELECT current_user, current_setting('amaml.workspace', true)")).one()
    assert login != row_security.ROLE
    assert not setting


def test_files_of_another_workspace_cannot_be_read(inside: tuple[Tenant, Tenant]) -> None:
    with row_security.across_workspaces(), transaction() as session:
        query = text("SELECT id FROM blobs WHERE workspace_id = :other AND sha256 IS NOT NULL LIMIT 1")
        theirs = session.scalars(query, {"other": str(inside[1].workspace_id)}).one()
    with pytest.raises(blobs.BlobNotFound):
        blobs.read(theirs)


class TestPlainLogin:
    """A database whose owner is no superuser, as a provider of databases gives it."""

    @pytest.fixture
    def plain(self, empty_database_url: str) -> Iterator[Any]:
        """The URL for a fresh login that owns the database, with or without the right to make roles."""
        url = make_url(empty_database_url)
        name = f"plain_{uuid4().hex[:12]}"

        def make(rights: str) -> str:
            execute(url, f"CREATE ROLE {name} LOGIN PASSWORD 'secret' {rights}")
            execute(url, f'ALTER DATABASE "{url.database}" OWNER TO {name}')
            return url_text(url.set(username=name, password="secret"))

        yield make
        execute(url, f'REASSIGN OWNED BY {name} TO "{url.username}"')
        execute(url, f"DROP OWNED BY {name}")
        execute(url, f"DROP ROLE {name}")

    def _migrate(self, url: str, target: str = "head") -> subprocess.CompletedProcess[str]:
        direction = "upgrade" if target == "head" else "downgrade"
        return subprocess.run(
            [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), direction, target],
            env={**os.environ, "AMAML_DATABASE_URL": url}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def test_without_the_right_to_make_roles_it_is_said_what_to_do(self, plain: Any, postgres_url: Any) -> None:
        url = plain("NOCREATEROLE")
        login = make_url(url).username
        refused = self._migrate(url)
        assert refused.returncode != 0
        assert f"GRANT amaml_api TO {login} WITH SET TRUE" in refused.stderr
        execute(postgres_url, f"GRANT amaml_api TO {login} WITH SET TRUE, INHERIT FALSE")
        done = self._migrate(url)
        assert done.returncode == 0, done.stderr

    def test_the_wall_stands_for_it_too(self, plain: Any, postgres_url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        url = plain("CREATEROLE")
        execute(postgres_url, f"GRANT amaml_api TO {make_url(url).username} WITH ADMIN TRUE, SET FALSE, INHERIT FALSE")
        done = self._migrate(url)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("AMAML_DATABASE_URL", url)
        mine, other = new_tenant(), new_tenant()
        with transaction() as session:
            assert _rows(session, "api_keys") == 2
        with row_security.confined():
            row_security.enter(mine.workspace_id)
            with transaction() as session:
                assert _owners(session, "api_keys") == {mine.workspace_id}
                assert keys.page(session, other.workspace_id, None, 10) == []
        with row_security.across_workspaces(), transaction() as session:
            assert keys.principal(session, other.key) is not None
        engine(url).dispose()
        plain_url = url_text(make_url(url).set(drivername="postgresql"))
        dump = subprocess.run(
            [str(_binary("pg_dump")), "--enable-row-security", "--data-only", "--table=workspaces", plain_url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert str(mine.workspace_id) in dump
        assert str(other.workspace_id) in dump
        back = self._migrate(url, "0006")
        assert back.returncode == 0, back.stderr


def _probed(tenant: Tenant | None, path: str) -> Any:
    """What routes see that forget every condition: in a thread, in the event loop, and while an answer streams."""
    app = build()

    def seen() -> list[str]:
        with transaction() as session:
            return sorted({str(one) for one in session.scalars(text("SELECT workspace_id FROM jobs"))})

    async def whole() -> list[str]:
        return await run_in_threadpool(seen)

    def pieces() -> Iterator[bytes]:
        yield json.dumps(seen()).encode()

    keyed = [Depends(authenticated)] if tenant else []
    app.get("/probe/thread", dependencies=keyed)(seen)
    app.get("/probe/loop", dependencies=keyed)(whole)
    app.get("/probe/stream", dependencies=keyed)(lambda: StreamingResponse(pieces()))

    async def ask() -> Any:
        headers = {"Authorization": f"Bearer {tenant.key}"} if tenant else {}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as http:
            return (await http.get(path)).raise_for_status().json()

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/probe/thread", "/probe/loop", "/probe/stream"])
def test_requests_are_confined_wherever_they_read(filled: tuple[Tenant, Tenant], path: str) -> None:
    for tenant in filled:
        assert _probed(tenant, path) == [str(tenant.workspace_id)]
    assert _probed(None, path) == []
