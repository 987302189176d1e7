"""The folder in which one worker's attempts keep their files, and the removal of those whose worker died.

A worker holds a lock on its folder as long as it lives; the kernel lets go of it however the worker ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from uuid import UUID


class WorkerFolder:
    """`parent`/`worker_id`, made on `open` and removed on `close`."""

    def __init__(self, parent: Path, worker_id: UUID) -> None:
        self._parent = parent
        self.path = parent / str(worker_id)
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the folder, and removes those of dead workers beside it."""
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        one_at_a_time = _open(self._parent)
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for other in self._parent.iterdir():
            try:
                lock = _open(other)
            except (FileNotFoundError, NotADirectoryError):  # its worker has just ended, or it is no worker's
                continue
            if _is_free(lock):
                shutil.rmtree(other)
            os.close(lock)
        self.path.mkdir(mode=0o700)
        self._lock = _open(self.path)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.close(one_at_a_time)

    def close(self) -> None:
        shutil.rmtree(self.path)
        if self._lock is not None:
            os.close(self._lock)

    def attempt(self, name: str) -> Path:
        """Where an attempt's files go; the attempt makes it, and removes it."""
        return self.path / name


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
