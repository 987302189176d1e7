"""A real API process on a real PostgreSQL for the client's tests, clients of it, and the `amaml` command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy.engine import URL

from amaml_client import Client
from tests.client.clients import Awaited, Clock, Open
from tests.client.commands import Amaml, Prepared, Start, Started
from tests.client.playing import SPEC
from tests.client.wire import Wire
from tests.support.api import Api, serving
from tests.support.databases import new_database

WEBHOOKS = {"AMAML_WEBHOOK_ALLOW_HTTP": "true", "AMAML_WEBHOOK_NETWORKS": "127.0.0.0/8"}


class Server(NamedTuple):
    """The API without a worker, and where its key lies: jobs do what a test says (see tests.client.playing)."""

    api: Api
    home: Path

    @property
    def url(self) -> str:
        return self.api.url

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()


@pytest.fixture(scope="session")
def running_server(
    postgres_url: URL, template_database: URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with new_database(postgres_url, template_database) as url:
        settings = {"AMAML_DATABASE_URL": url, "AMAML_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "service.admin", "bootstrap"], env={**os.environ, **settings}, check=True)
        with serving(url, home / "log", AMAML_HOME=str(home), **WEBHOOKS) as api:
            yield Server(api, home)


@pytest.fixture
def server(running_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One for all tests here; the store's functions use its database."""
    monkeypatch.setenv("AMAML_DATABASE_URL", running_server.api.environment["AMAML_DATABASE_URL"])
    return running_server


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    wire = Wire(server.api.port)
    yield wire
    wire.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, server.key) as client:
        yield client


@pytest.fixture(params=[Client, Awaited])
def open_client(request: pytest.FixtureRequest, server: Server) -> Iterator[Open]:
    """Opens a client of either kind; to the server itself unless another address is given."""
    opened = []

    def open_(url: str = server.url, key: str = server.key) -> Any:
        opened.append(request.param(url, key))
        return opened[-1]

    yield open_
    for client in opened:
        client.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of all clients in this test."""
    return Clock(monkeypatch)


@pytest.fixture
def job(client: Client) -> str:
    """One that is queued, under a name that would steer a terminal."""
    return client.submit({**SPEC, "name": "the [bold]job[/bold]\x1b[31m"}).id


@pytest.fixture(scope="session")
def bare_environment() -> dict[str, str]:
    """Without anything that the command heeds."""
    foreign = ("AMAML_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@pytest.fixture
def environment(server: Server, bare_environment: dict[str, str]) -> dict[str, str]:
    """Of a user whose stack is the server; the key is found by itself."""
    return {**bare_environment, "AMAML_URL": server.url, "AMAML_HOME": str(server.home), "TERM": "xterm-256color"}


@pytest.fixture(scope="session")
def prepared(bare_environment: dict[str, str]) -> Iterator[Prepared]:
    prepared = Prepared(bare_environment)
    yield prepared
    prepared.close()


@pytest.fixture
def amaml(prepared: Prepared, environment: dict[str, str], tmp_path: Path) -> Amaml:
    """Runs the command in the test's folder."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return prepared.run(arguments, {**environment, **changes}, tmp_path)

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Starts the installed script, which runs beside the test; in a pipe unless `on_a_terminal`."""
    started = []

    def start_(*arguments: str, on_a_terminal: bool = False, **changes: str) -> Started:
        started.append(Started(arguments, {**environment, **changes}, on_a_terminal=on_a_terminal))
        return started[-1]

    yield start_
    for one in started:
        one.close()
