"""Which server is asked, and which key it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from amaml_client.errors import BadSettings
from amaml_client.settings import settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AMAML_URL", "AMAML_PORT", "AMAML_API_KEY", "AMAML_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".amaml"
    home.mkdir()
    (home / "admin.key").write_text("amaml_file\n")
    return home


def test_the_local_stack_is_found_by_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings() == ("http://127.0.0.1:8000", "amaml_file", True)
    (home / "url").write_text("http://127.0.0.1:4711")
    assert settings().url == "http://127.0.0.1:4711"
    monkeypatch.setenv("AMAML_PORT", "9000")
    assert settings().url == "http://127.0.0.1:9000"
    monkeypatch.setenv("AMAML_PORT", "0")
    assert settings().url == "http://127.0.0.1:4711"
    monkeypatch.setenv("AMAML_URL", "https://amaml.example/base/")
    assert settings().url == "https://amaml.example/base"
    assert settings("http://[::1]:1").url == "http://[::1]:1"


def test_the_key_file_is_shown_to_this_machine_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings("http://localhost:1").key == settings("http://[::1]:1").key == "amaml_file"
    assert settings("http://amaml.example").key is None
    assert settings("http://127.0.0.1.example").key is None
    monkeypatch.setenv("AMAML_API_KEY", "amaml_environment")
    assert settings("http://amaml.example").key == settings().key == "amaml_environment"
    assert settings(key="amaml_argument").key == "amaml_argument"


def test_another_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMAML_HOME", str(tmp_path / "other"))
    assert settings().key is None


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://localhost", "http://", "http://localhost:port", "http://[::1"]
)
def test_no_address(home: Path, url: str) -> None:
    with pytest.raises(BadSettings, match="AMAML_URL"):
        settings(url)
