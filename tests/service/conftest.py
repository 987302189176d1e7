"""The API as a real process on a real database; a workspace and a key of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from sqlalchemy.engine import URL

from tests.support.api import Api, Tenant, client, new_tenant, serving
from tests.support.browser import browser  # noqa: F401 - a fixture
from tests.support.databases import new_database
from tests.support.waiting import CEILING_SECONDS


@pytest.fixture(scope="session")
def service_database(postgres_url: URL, template_database: URL) -> Iterator[str]:
    """One database for all tests here; workspaces keep them apart."""
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def store(service_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that the store's functions use here, and the API in its process."""
    monkeypatch.setenv("AMAML_DATABASE_URL", service_database)
    return service_database


@pytest.fixture(scope="session")
def api(service_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One API for all tests here that need none with settings of its own."""
    with serving(service_database, tmp_path_factory.mktemp("api") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def anyone(api: Api) -> Iterator[httpx.Client]:
    """A client without a key."""
    # No connection is used again that the server may be closing just then.
    limits = httpx.Limits(keepalive_expiry=1)
    with httpx.Client(base_url=api.url, timeout=CEILING_SECONDS, limits=limits, verify=False) as ready:
        yield ready


@pytest.fixture
def tenant(store: str) -> Tenant:
    return new_tenant()


@pytest.fixture
def http(api: Api, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client with the test's own key."""
    with client(api, tenant) as ready:
        yield ready
