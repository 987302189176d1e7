"""The command that makes the default workspace and the admin key."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from sqlalchemy import func, select

from service.admin import bootstrap, main
from service.core.database import engine, transaction
from service.core.tables import Workspace
from service.keys import store as keys
from service.keys.tables import ApiKey


@pytest.fixture
def fresh(database_url: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AMAML_DATABASE_URL", database_url)
    yield database_url
    engine(database_url).dispose()


def test_the_key_opens_the_default_workspace_and_is_nobody_elses(fresh: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "service.admin", "bootstrap"]
    subprocess.run(command, env={**os.environ, "AMAML_HOME": str(home)}, check=True)
    bootstrap(home)
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


def status(*arguments: str) -> int | str | None:
    """The exit status of the command, which runs in this process: to start one takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["service.admin", *arguments])
        try:
            return main()
        except SystemExit as end:
            return end.code


def said(*arguments: str) -> list[list[str]]:
    """What the command prints, which must succeed."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        ended = status(*arguments)
    assert ended == 0, errors.getvalue()
    return [line.split("\t") for line in out.getvalue().splitlines()]


def test_workspaces_are_made_and_listed(fresh: str) -> None:
    assert said("workspaces", "create", "lab") == []
    assert [row[0] for row in said("workspaces", "list")] == ["lab"]
    command = [sys.executable, "-m", "service.admin", "workspaces", "create", "lab"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (1, "service.admin: there is a workspace lab already\n")


def test_quotas_are_set_and_given_back(fresh: str) -> None:
    said("workspaces", "create", "lab")

    def shown() -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in said("quotas", "show", "lab")}

    assert shown()["queued_jobs"] == ["0", "10000", "default"]
    said("quotas", "set", "lab", "queued_jobs", "5")
    said("quotas", "set", "lab", "stored_bytes", "unlimited")
    assert shown()["queued_jobs"] == ["0", "5", "own"]
    assert shown()["stored_bytes"] == ["0", "unlimited", "own"]
    said("quotas", "set", "lab", "queued_jobs", "default")
    assert shown()["queued_jobs"] == ["0", "10000", "default"]
    for wrong in (
        ("lab", "queued_jobs", "-1"), ("lab", "queued_jobs", "x"), ("lab", "nonesuch", "1"), ("lab", "running_jobs", "0"),
        ("nobody", "queued_jobs", "1"),
    ):  # fmt: skip
        assert status("quotas", "set", *wrong) != 0, wrong


def test_keys_are_made_listed_and_revoked(fresh: str) -> None:
    said("workspaces", "create", "lab")
    end = "2099-01-31T12:00:00Z"
    ((key,),) = said(
        "keys", "create", "lab", "notebook", "--scope", "jobs:*", "--scope", "usage:read", "--expires", end
    )
    with transaction() as session:
        found = keys.principal(session, key)
    assert found is not None
    assert found.scopes == ("jobs:*", "usage:read")
    (row,) = said("keys", "list", "lab")
    assert row[:5] == [str(found.key_id), "notebook", key[:12], "jobs:* usage:read", "2099-01-31T12:00:00+00:00"]
    said("keys", "revoke", "lab", str(found.key_id))
    with transaction() as session:
        assert keys.principal(session, key) is None
    assert said("keys", "list", "lab")[0][4] == "revoked"
    assert status("keys", "revoke", "lab", "0199aa10-7c1e-7d58-8d2a-9a4f0c5b1e22") == 1
    for wrong in (
        ("--scope", "fly"),
        ("--expires", "2020-01-01T00:00:00Z"),
        ("--expires", "2099-01-01"),
        ("--expires", "x"),
    ):
        assert status("keys", "create", "lab", "x", *wrong) == 2, wrong
