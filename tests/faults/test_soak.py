"""A minute and a half of accidents, and nothing is lost, doubled or different."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_jobs_end_once_and_in_the_same_bits_under_accidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMAML_DATABASE_URL", "set by the site")
    figures, broken = soak(90, 1, tmp_path)
    assert broken == [], figures
    assert figures["faults"] >= 20, figures
    assert figures["faults_seen"]["launcher killed with all its children"] >= 1, figures
    assert figures["jobs"] >= 10, figures
