"""Ten minutes of accidents, and nothing is lost, doubled or different."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import soak

SECONDS = 600.0


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.timeout(3_000)
def test_jobs_end_once_and_in_the_same_bits_under_accidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMAML_DATABASE_URL", "set by the site")
    figures, broken = soak(SECONDS, 1, tmp_path)
    assert broken == [], figures
    assert figures["faults"] >= 100, figures
    assert figures["faults_seen"]["launcher killed with all its children"] >= 4, figures
    assert figures["jobs"] >= 50, figures
