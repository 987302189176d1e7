"""The embedded Valkey."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import redis

from launcher import valkey
from launcher.children import Child
from launcher.log import Log


@contextmanager
def server(folder: Path) -> Iterator[tuple[Child, str]]:
    child, url = valkey.start(folder, "secret", Log(io.StringIO()), Event())
    try:
        yield child, url
    finally:
        child.stop()


def test_keys_survive_a_stop_and_the_configuration_is_as_celery_needs_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with 'blanks' and ü"
    with server(folder) as (child, url), redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        client.set("key", "value")
    assert child.status() == 0
    with server(folder) as (_, url), redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.get("key") == "value"


def test_it_starts_after_a_hard_kill(tmp_path: Path) -> None:
    with server(tmp_path) as (child, _):
        os.kill(child.pid, signal.SIGKILL)
    with server(tmp_path) as (_, url), redis.Redis.from_url(url) as client:
        assert client.ping()


def test_it_asks_for_the_password_which_is_on_no_command_line(tmp_path: Path) -> None:
    with server(tmp_path) as (child, url):
        with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(url.replace("secret@", "wrong@")) as client:
            client.ping()
        assert not any("secret" in argument for argument in child.command.argv)
    assert (tmp_path / "valkey.conf").stat().st_mode & 0o777 == 0o600
