"""The data folder of one stack: its lock and its files."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import TextIO

from launcher.children import StartFailed


class Home:
    """`AMAML_HOME`, held by one launcher at a time.

    admin.key              the admin API key, created at the first start
    url                    the API's address while the stack runs
    postgres/, valkey/     the stores' data
    *.password             the stores' passwords, created at the first start
    tmp/                   temporary files of all children, removed at start and end
    launcher.lock          locked by the running launcher
    children.json          the launcher's running children
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.postgres = self.folder / "postgres"
        self.valkey = self.folder / "valkey"
        self.temporary = self.folder / "tmp"
        self.children = self.folder / "children.json"
        self.url = self.folder / "url"
        self.admin_key = self.folder / "admin.key"
        self._lock: TextIO | None = None

    def open(self) -> None:
        """Create the folder and take its lock; raises StartFailed if it can't be written or another launcher has it."""
        try:
            # 711: PostgreSQL, which runs as an unprivileged user when root starts it, has to reach its own folder in here.
            self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._lock = (self.folder / "launcher.lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartFailed(
                f"another launcher uses {self.folder}: stop it, or name another folder by AMAML_HOME"
            ) from error
        except OSError as error:
            raise StartFailed(
                f"AMAML_HOME={self.folder} can't be used: {error.strerror}; name another folder"
            ) from error

    def close(self) -> None:
        if self._lock:
            self._lock.close()

    def remove_temporary(self) -> None:
        if self.temporary.exists():
            shutil.rmtree(self.temporary)

    def password(self, name: str) -> str:
        """The password of this name, created at the first use; only this user can read its file."""
        file = self.folder / f"{name}.password"
        if not file.exists():
            write_private(file, secrets.token_urlsafe(24))
        return file.read_text()


def write_private(file: Path, text: str) -> None:
    """Write the file whole or not at all; only this user can read it."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    fresh.replace(file)
