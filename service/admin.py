"""Commands for operators: `python -m service.admin bootstrap`, `workspaces`, `quotas`, `keys`.

They act on the database itself, so they need AMAML_DATABASE_URL and no API key.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

from sqlalchemy.orm import Session

from service.core import quotas, workspaces
from service.core.database import transaction
from service.core.quota_bounds import LEAST, MEANINGS
from service.core.settings import settings
from service.core.tables import Workspace
from service.keys import store as keys
from service.keys.scopes import GRANTS

KEY_FILE = "admin.key"
LARGEST: Final = 2**53


class Refused(Exception):
    """The command can't be carried out; the message says why."""


def bootstrap(home: Path | None) -> None:
    """Makes the default workspace, and a key in `home` unless the one there is valid. May be run any number of times."""
    with transaction() as session:
        workspace_id = keys.ensure_workspace(session, keys.DEFAULT_WORKSPACE)
        if home is None:
            return
        path = home / KEY_FILE
        if path.exists() and keys.principal(session, path.read_text().strip()):
            return
        _, key = keys.add(session, workspace_id, "admin")
        # Last in the transaction, so that no key is stored whose file can't be written. A file without a row is replaced later.
        _write_private(path, key)


def _write_private(path: Path, text: str) -> None:
    """Writes a file that nobody else can read at any time, and that is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


def _bootstrap(_: Namespace) -> None:
    home = settings().home
    bootstrap(home)
    if home is None:
        sys.stderr.write("AMAML_HOME is not set: the workspace is there, but no admin key was made\n")


def _create_workspace(given: Namespace) -> None:
    with transaction() as session:
        if workspaces.find(session, given.workspace) is not None:
            raise Refused(f"there is a workspace {given.workspace} already")
        keys.ensure_workspace(session, given.workspace)


def _list_workspaces(_: Namespace) -> None:
    with transaction() as session:
        for one in workspaces.every(session):
            _say(one.name, one.id, one.created_at.isoformat())


def _show_quotas(given: Namespace) -> None:
    with transaction() as session:
        workspace = _wanted(session, given.workspace)
        now = quotas.use(session, workspace.id)
    for name in MEANINGS:
        bound = getattr(now.bounds, name)
        origin = "own" if name in workspace.quotas else "default"
        _say(name, f"{getattr(now, name):.15g}", "unlimited" if bound is None else bound, origin)


def _set_quota(given: Namespace) -> None:
    if isinstance(given.bound, int) and given.bound < LEAST[given.quota]:
        raise Refused(f"{given.quota} must be at least {LEAST[given.quota]}")
    with transaction() as session:
        workspace = _wanted(session, given.workspace)
        if given.bound == "default":
            workspaces.use_default_quota(session, workspace.id, given.quota)
        else:
            bound = None if given.bound == "unlimited" else given.bound
            workspaces.set_quota(session, workspace.id, given.quota, bound)


def _create_key(given: Namespace) -> None:
    with transaction() as session:
        workspace = _wanted(session, given.workspace)
        _, key = keys.add(session, workspace.id, given.name, given.scope or ["*"], given.expires)
    _say(key)


def _list_keys(given: Namespace) -> None:
    with transaction() as session:
        found = keys.page(session, _wanted(session, given.workspace).id, None, None)
    for one in found:
        ends = "revoked" if one.revoked_at else one.expires_at.isoformat() if one.expires_at else "never expires"
        used = one.last_used_at.isoformat() if one.last_used_at else "never used"
        _say(one.id, one.name, one.prefix, " ".join(one.scopes), ends, used)


def _revoke_key(given: Namespace) -> None:
    with transaction() as session:
        if not keys.revoke(session, _wanted(session, given.workspace).id, given.id):
            raise Refused(f"the workspace {given.workspace} has no key {given.id}")


def _wanted(session: Session, name: str) -> Workspace:
    found = workspaces.find(session, name)
    if found is None:
        raise Refused(f"there is no workspace {name}: see python -m service.admin workspaces list")
    return found


def _say(*columns: object) -> None:
    sys.stdout.write("\t".join(map(str, columns)) + "\n")


def _bound(text: str) -> int | Literal["default", "unlimited"]:
    if text in ("default", "unlimited"):
        return text  # type: ignore[return-value]
    if not text.isdecimal() or int(text) > LARGEST:
        raise ArgumentTypeError(f"{text!r} is no bound: give a whole number up to {LARGEST}, unlimited, or default")
    return int(text)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time: write it like 2027-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise ArgumentTypeError(f"{text!r} names no time zone: write it like 2027-01-31T12:00:00Z")
    if found <= datetime.now(UTC):
        raise ArgumentTypeError(f"{text!r} is past: such a key would never be valid")
    return found


def _name(text: str) -> str:
    if not 1 <= len(text) <= 200 or "\x00" in text:
        raise ArgumentTypeError("a name has 1 to 200 characters")
    return text


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m service.admin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    added = commands.add_parser(
        "bootstrap", help="make the default workspace and the admin key, where they are missing"
    )
    added.set_defaults(run=_bootstrap)

    verbs = commands.add_parser("workspaces", help="make and list workspaces").add_subparsers(required=True)
    added = verbs.add_parser("create")
    added.add_argument("workspace", type=_name)
    added.set_defaults(run=_create_workspace)
    verbs.add_parser("list", help="name, id, when it was made").set_defaults(run=_list_workspaces)

    verbs = commands.add_parser("quotas", help="what a workspace may use").add_subparsers(required=True)
    added = verbs.add_parser("show", help="quota, used, bound, whether the bound is its own or the default")
    added.add_argument("workspace")
    added.set_defaults(run=_show_quotas)
    added = verbs.add_parser("set", help="; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items()))
    added.add_argument("workspace")
    added.add_argument("quota", choices=list(MEANINGS))
    added.add_argument("bound", type=_bound, help="a whole number, unlimited, or default")
    added.set_defaults(run=_set_quota)

    verbs = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(required=True)
    added = verbs.add_parser("create", help="prints the key, which nobody can read again")
    added.add_argument("workspace")
    added.add_argument("name", type=_name)
    added.add_argument("--scope", action="append", choices=GRANTS, help="may be repeated; without it: everything")
    added.add_argument("--expires", type=_time, help="like 2027-01-31T12:00:00Z; without it: never")
    added.set_defaults(run=_create_key)
    added = verbs.add_parser("list", help="id, name, first characters, scopes, end, last use")
    added.add_argument("workspace")
    added.set_defaults(run=_list_keys)
    added = verbs.add_parser("revoke", help="ends the key at once")
    added.add_argument("workspace")
    added.add_argument("id", type=UUID)
    added.set_defaults(run=_revoke_key)
    return parser


def main() -> int:
    given = _parser().parse_args()
    try:
        given.run(given)
    except Refused as refusal:
        sys.stderr.write(f"service.admin: {refusal}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
