"""Ports on the loopback interface."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Final

HOST = "127.0.0.1"
_LOWEST: Final = 10_000
_ASSIGNED_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 1_000


def free_port() -> int:
    """A port that nobody listens on now, drawn from the ports that the system doesn't assign by itself.

    A port that the system assigns (to the local end of every connection, and to servers that bind to port 0) may be taken before
    the caller's server is up, or while it restarts. Raises OSError where no port is free.
    """
    highest = _first_assigned_port()
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(highest - _LOWEST)
        if is_free(port):
            return port
    raise OSError(f"no port from {_LOWEST} to {highest - 1} is free: end a server that listens on one of them")


def _first_assigned_port() -> int:
    """The first port that the system assigns by itself; 65536 where it assigns nearly all of them."""
    try:
        first = int(_ASSIGNED_PORTS.read_text().split()[0])
    except FileNotFoundError:
        first = 49_152  # macOS
    return first if first > _LOWEST + _TRIES else 1 << 16


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now; raises PermissionError for a port below 1024 without the privilege."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except PermissionError:
            raise
        except OSError:
            return False
        return True
