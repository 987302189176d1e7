"""The store on its own: migrations, blobs, events."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from alembic import command
from sqlalchemy import func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from service.core import blobs
from service.core import schema_version as schema
from service.core.database import engine, transaction
from service.core.notifications import CHANGES
from service.core.tables import Blob, BlobChunk
from service.jobs import events
from service.jobs.tables import Event, Job
from tests.support.api import submit
from tests.support.databases import MIGRATIONS, alembic, listening, migrate


class TestMigrations:
    def test_they_make_what_the_tables_say(self, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AMAML_DATABASE_URL", empty_database_url)
        self._upgrade_from_elsewhere(empty_database_url)
        command.check(alembic())
        command.downgrade(alembic(), "base")
        command.upgrade(alembic(), "head")
        with engine(empty_database_url).connect() as connection:
            storage = (
                "SELECT attstorage FROM pg_attribute WHERE attrelid = 'blob_chunks'::regclass AND attname = 'data'"
            )
            assert connection.scalar(text(storage)) in ("e", b"e")
        engine(empty_database_url).dispose()

    def test_two_at_once_do_it_once(self, empty_database_url: str) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(migrate, [make_url(empty_database_url)] * 2))
        with transaction(empty_database_url) as session:
            assert schema.current(session) == schema.head()
        engine(empty_database_url).dispose()

    def _upgrade_from_elsewhere(self, url: str) -> None:
        """As operators do it, whatever folder they are in."""
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", str(MIGRATIONS / "alembic.ini"), "upgrade", "head"],
            env={**os.environ, "AMAML_DATABASE_URL": url}, cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("store")
class TestBlobs:
    @pytest.mark.parametrize("size", [0, 1, blobs.CHUNK_BYTES - 1, blobs.CHUNK_BYTES, blobs.CHUNK_BYTES + 1, 2_500_000])
    def test_what_is_written_is_read(self, size: int) -> None:
        data = os.urandom(size)
        written = blobs.write(data[start : start + 300_000] for start in range(0, size, 300_000))
        assert (written.sha256, written.size) == (hashlib.sha256(data).hexdigest(), size)
        assert b"".join(blobs.read(written.blob_id)) == data
        for start, end in ((0, 10), (size // 2, size), (max(0, size - 3), size + 9), (size, None)):
            assert b"".join(blobs.read(written.blob_id, start, end)) == data[start:end]
        with transaction() as session:
            pieces = session.scalars(
                select(func.length(BlobChunk.data))
                .where(BlobChunk.blob_id == written.blob_id)
                .order_by(BlobChunk.index)
            ).all()
        assert all(piece == blobs.CHUNK_BYTES for piece in pieces[:-1])

    def test_a_source_that_fails_leaves_nothing(self) -> None:
        def broken() -> Iterator[bytes]:
            yield b"x" * 3_000_000
            raise OSError("disk")

        with transaction() as session:
            before = session.scalar(select(func.count()).select_from(Blob))
        with pytest.raises(OSError, match="disk"):
            blobs.write(broken())
        with transaction() as session:
            assert session.scalar(select(func.count()).select_from(Blob)) == before

    def test_an_unfinished_or_unknown_blob_cannot_be_read(self) -> None:
        writer = blobs.Writer()
        writer.write(b"x" * 2_000_000)
        for blob_id in (writer.blob_id, uuid4()):
            with pytest.raises(blobs.BlobNotFound):
                blobs.read(blob_id)
        writer.discard()

    def test_sweeping_removes_old_orphans_alone(self, http: httpx.Client) -> None:
        orphan, young, kept = blobs.write([b"a"]), blobs.write([b"b"]), blobs.write([b"c"])
        unfinished = blobs.Writer()
        job_id = submit(http)
        with transaction() as session:
            session.execute(
                update(Blob)
                .where(Blob.id.in_([orphan.blob_id, kept.blob_id, unfinished.blob_id]))
                .values(created_at=func.now() - timedelta(days=1))
            )
            session.execute(update(Job).where(Job.id == UUID(job_id)).values(initialization_blob_id=kept.blob_id))
        with transaction() as session:
            blobs.sweep(session)
        with transaction() as session:
            left = {blob.blob_id: session.get(Blob, blob.blob_id) for blob in (orphan, young, kept)}
            assert [left[blob.blob_id] is not None for blob in (orphan, young, kept)] == [False, True, True]
            assert session.get(Blob, unfinished.blob_id) is None


class TestEvents:
    def test_numbers_have_no_gaps_whoever_writes(self, http: httpx.Client) -> None:
        job_id = UUID(submit(http))

        def write(number: int) -> None:
            if number % 5 == 0:
                with engine().connect() as connection, Session(connection) as session:
                    events.append(session, job_id, "progress", {})
                    session.rollback()
            with transaction() as session:
                events.append(session, job_id, "progress", {"iteration": number})

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(30)))
        with transaction() as session:
            numbers = list(session.scalars(select(Event.seq).where(Event.job_id == job_id).order_by(Event.seq)))
            assert session.get_one(Job, job_id).last_seq == 31
        assert numbers == list(range(1, 32))

    def test_listeners_are_told(self, http: httpx.Client, store: str) -> None:
        job_id = submit(http)
        with listening(store, CHANGES) as hear:
            with transaction() as session:
                events.append(session, UUID(job_id), "progress", {})
            assert hear() == job_id

    @pytest.mark.usefixtures("store")
    def test_a_job_that_is_not_there_has_no_events(self) -> None:
        with transaction() as session, pytest.raises(LookupError):
            events.append(session, uuid4(), "progress", {})
