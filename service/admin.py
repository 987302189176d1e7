"""`python -m service.admin bootstrap`: the default workspace, and the admin key that `$AMAML_HOME/admin.key` holds."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from service.settings import settings
from service.store import keys
from service.store.database import transaction

KEY_FILE = "admin.key"


def bootstrap(home: Path | None) -> None:
    """Makes the workspace, and a key in `home` unless the one there opens it already. May be run again and again."""
    with transaction() as session:
        workspace_id = keys.ensure_workspace(session, keys.DEFAULT_WORKSPACE)
        if home is None:
            return
        path = home / KEY_FILE
        if path.exists() and keys.principal(session, path.read_text().strip()):
            return
        _, key = keys.add(session, workspace_id, "admin")
        # Last, inside the transaction: a key that can't be kept is no key. A key file without its row is replaced next time.
        _write_private(path, key)


def _write_private(path: Path, text: str) -> None:
    """Never readable by others, never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


def main() -> int:
    parser = ArgumentParser(prog="python -m service.admin", description=__doc__)
    parser.add_subparsers(dest="command", required=True).add_parser(
        "bootstrap", help="make the default workspace and the admin key, where they are missing"
    )
    parser.parse_args()
    home = settings().home
    bootstrap(home)
    if home is None:
        sys.stderr.write("AMAML_HOME is not set: the workspace is there, but no admin key was made\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
