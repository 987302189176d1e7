"""Where the server is and which key opens it, from arguments, else the environment, else the local stack's files."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from amaml_client.errors import BadSettings


class ClientSettings(NamedTuple):
    url: str
    key: str | None
    local: bool
    """The server is on this machine: no proxy stands between, and the admin key's file may be used."""


def settings(url: str | None = None, key: str | None = None) -> ClientSettings:
    """Reads AMAML_URL (else port AMAML_PORT of this machine, else $AMAML_HOME/url, which a running local stack writes,
    else port 8000) and AMAML_API_KEY (else $AMAML_HOME/admin.key). AMAML_HOME is .amaml by default.

    The key file is the local stack's, so it is offered to a server on this machine alone.
    Raises BadSettings on an address that isn't http(s).
    """
    url = url or os.environ.get("AMAML_URL") or _local_url()
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # no port, no IPv6 address
        good = False
    if not good:
        raise BadSettings(f"{url!r} is no server's address: AMAML_URL looks like http://127.0.0.1:8000")
    local = _is_loopback(parts.hostname or "")
    key = key or os.environ.get("AMAML_API_KEY") or (_in_home("admin.key") if local else None)
    return ClientSettings(url.rstrip("/"), key, local)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _local_url() -> str:
    port = os.environ.get("AMAML_PORT")
    if port and port != "0":  # 0 let the stack take any free port
        return f"http://127.0.0.1:{port}"
    return _in_home("url") or "http://127.0.0.1:8000"


def _in_home(name: str) -> str | None:
    path = Path(os.environ.get("AMAML_HOME") or ".amaml") / name
    return path.read_text().strip() if path.is_file() else None
