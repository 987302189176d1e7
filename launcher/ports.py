"""Ports on the loopback interface."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Final

HOST = "127.0.0.1"
_LOWEST: Final = 10_000
_HANDED_OUT: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 1_000


def free_port() -> int:
    """A port that nobody listens on now, drawn from those that the system doesn't hand out by itself.

    What the system hands out (to the near end of every connection, and to whoever binds to port 0) may be taken before the
    caller's server is up, or while it is started again. These ports are taken by name only. Raises OSError where all are.
    """
    highest = _first_handed_out()
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(highest - _LOWEST)
        if is_free(port):
            return port
    raise OSError(f"no port from {_LOWEST} to {highest - 1} is free: end a server that listens on one of them")


def _first_handed_out() -> int:
    """The first port that the system hands out by itself; beyond all ports where that is nearly every one."""
    try:
        first = int(_HANDED_OUT.read_text().split()[0])
    except FileNotFoundError:
        first = 49_152  # macOS
    return first if first > _LOWEST + _TRIES else 1 << 16


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now; raises PermissionError for a port below 1024 that isn't ours."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except PermissionError:
            raise
        except OSError:
            return False
        return True
