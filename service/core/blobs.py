"""Large bytes in Postgres, cut into chunks of 1 MiB, so that no process ever holds one whole.

A blob is written chunk by chunk in transactions of its own: a slow upload holds neither a connection nor a snapshot.
Until its last chunk is written, its sha256 is null and nothing refers to it; `sweep` removes what a crash leaves behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from service.core import row_security
from service.core.database import transaction
from service.core.tables import Base, Blob, BlobChunk

CHUNK_BYTES = 1 << 20


class Written(NamedTuple):
    blob_id: UUID
    sha256: str
    size: int


class BlobNotFound(LookupError):
    """No finished blob has this id."""


class Writer:
    """Takes bytes in pieces of any size; `finish` completes the blob, `discard` removes what was written."""

    def __init__(self) -> None:
        with transaction() as session:
            started = insert(Blob).values(size_bytes=0, workspace_id=row_security.workspace()).returning(Blob.id)
            self.blob_id: UUID = session.scalars(started).one()
        self.size = 0
        self._digest = hashlib.sha256()
        self._pending = bytearray()
        self._chunks = 0

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._pending += data
        while len(self._pending) >= CHUNK_BYTES:
            self._store(bytes(self._pending[:CHUNK_BYTES]))
            del self._pending[:CHUNK_BYTES]

    def finish(self) -> Written:
        if self._pending:
            self._store(bytes(self._pending))
            self._pending.clear()
        written = Written(self.blob_id, self._digest.hexdigest(), self.size)
        with transaction() as session:
            session.execute(
                update(Blob).where(Blob.id == self.blob_id).values(sha256=written.sha256, size_bytes=written.size)
            )
        return written

    def discard(self) -> None:
        with transaction() as session:
            remove(session, [self.blob_id])

    def _store(self, chunk: bytes) -> None:
        with transaction() as session:
            session.execute(insert(BlobChunk).values(blob_id=self.blob_id, index=self._chunks, data=chunk))
        self._chunks += 1


def write(chunks: Iterable[bytes]) -> Written:
    """Stores the bytes. If `chunks` raises, nothing is left."""
    writer = Writer()
    try:
        for chunk in chunks:
            writer.write(chunk)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def read(blob_id: UUID, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Bytes [start, end) in pieces of at most 1 MiB, each read when it is needed; raises BlobNotFound at once."""
    with transaction() as session:
        size = session.scalar(select(Blob.size_bytes).where(Blob.id == blob_id, Blob.sha256.is_not(None)))
    if size is None:
        raise BlobNotFound(f"there is no finished blob {blob_id}")
    return _pieces(blob_id, start, size if end is None else min(end, size))


def _pieces(blob_id: UUID, start: int, end: int) -> Iterator[bytes]:
    position = start
    while position < end:
        index, offset = divmod(position, CHUNK_BYTES)
        length = min(CHUNK_BYTES - offset, end - position)
        with transaction() as session:
            data = session.scalar(
                select(func.substring(BlobChunk.data, offset + 1, length)).where(
                    BlobChunk.blob_id == blob_id, BlobChunk.index == index
                )
            )
        if data is None:
            raise BlobNotFound(f"blob {blob_id} was removed while it was read")
        yield data
        position += length


def give(session: Session, blob_id: UUID, workspace_id: UUID) -> None:
    """Gives a worker's blob to the workspace, in the transaction in which a row of the workspace first refers to it."""
    session.execute(update(Blob).where(Blob.id == blob_id).values(workspace_id=workspace_id))


def remove(session: Session, blob_ids: Iterable[UUID]) -> None:
    """Removes these blobs and their chunks in the caller's transaction; nothing may refer to them any more."""
    session.execute(delete(Blob).where(Blob.id.in_(list(blob_ids))))


def references() -> list[Column[Any]]:
    """Every column that refers to a blob, of the tables that this process has loaded (service.tables loads all)."""
    columns = [column for table in Base.metadata.tables.values() for column in table.columns]
    referring = [one for one in columns if any(key.column.table is Blob.__table__ for key in one.foreign_keys)]
    return [column for column in referring if column.table is not BlobChunk.__table__]


def sweep(session: Session, older_than: timedelta = timedelta(hours=6)) -> int:
    """Removes blobs of that age that nothing refers to (because of a crash between the two writes); returns their count.

    A reference from a table that isn't loaded makes Postgres refuse the removal.
    """
    unreferred = [~exists().where(column == Blob.id) for column in references()]
    orphans = delete(Blob).where(Blob.created_at < func.now() - older_than, *unreferred).returning(Blob.id)
    return len(session.scalars(orphans).all())
