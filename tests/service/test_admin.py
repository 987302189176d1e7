"""The command that makes the default workspace and the admin key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from service.admin import bootstrap
from service.store import keys
from service.store.database import engine, transaction
from service.store.tables import ApiKey, Workspace


@pytest.fixture
def fresh(database_url: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AMAML_DATABASE_URL", database_url)
    yield database_url
    engine(database_url).dispose()


def test_the_key_opens_the_default_workspace_and_is_nobody_elses(fresh: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "service.admin", "bootstrap"],
            env={**os.environ, "AMAML_HOME": str(home)}, check=True, timeout=60,
        )  # fmt: skip
    file = home / "admin.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in home.iterdir()] == ["admin.key"]
    with transaction() as session:
        found = keys.principal(session, file.read_text().strip())
        assert found is not None
        assert session.get_one(Workspace, found.workspace_id).name == "default"
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1


def test_a_key_that_opens_nothing_is_replaced(fresh: str, tmp_path: Path) -> None:
    for content in ("", "nonsense", keys.new_key()):
        (tmp_path / "admin.key").write_text(content)
        bootstrap(tmp_path)
        with transaction() as session:
            assert keys.principal(session, (tmp_path / "admin.key").read_text().strip()) is not None


def test_without_a_home_there_is_a_workspace_and_no_key(fresh: str) -> None:
    bootstrap(None)
    with transaction() as session:
        assert list(session.scalars(select(Workspace.name))) == ["default"]
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 0
