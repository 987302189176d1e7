"""Adaptations by both clients and by `amaml adapt`, with rows out of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amaml_client import AdaptationFailed, Client, Conflict, Invalid, NotFound, RowFileError, TimedOut
from amaml_client.rowfile import read_rows
from tests.client.clients import Open
from tests.client.commands import Amaml
from tests.client.playing import SPEC, adapting, finish
from tests.service.test_adaptations import initialization

X, Y = [[0.1], [0.2]], [1.0, 2.0]


@pytest.fixture
def learned(client: Client) -> str:
    job_id = client.submit(SPEC).id
    finish(job_id, initialization())
    return job_id


def test_rows_become_predictions(open_client: Open, learned: str, tmp_path: Path) -> None:
    client = open_client()
    with adapting(b"weights") as asked:
        found = client.adapt(learned, X, Y, [[0.3], [0.4]], by="finetune", epochs=3, want=["predictions", "weights"])
        assert found.check() is found
        assert (found.predictions, found.outputs, found.ended) == ([[0.5], [0.5]], ["y"], True)
        assert found.curve is not None
        assert found.curve.support[-1] == 0.25
        arrays = client.adapt(learned, np.array(X), torch.tensor(Y), np.array([0.3]), query_y=np.array([1]))
        assert arrays.predictions == [[0.5]]
    assert asked[0]["support"] == {"x": X, "y": Y}
    assert (asked[0]["epochs"], asked[0]["lr"], asked[0]["return"]) == (3, None, ["predictions", "weights"])
    assert asked[1]["query"] == {"x": [0.3], "y": [1]}
    path = client.download_weights(found.id, tmp_path / "weights")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found.weights.sha256
    assert client.adaptation(found.id).predictions == found.predictions
    assert [one.id for one in client.adaptations(learned, state="succeeded")] == [arrays.id, found.id]
    client.delete_adaptation(found.id)
    with pytest.raises(NotFound):
        client.adaptation(found.id)


def test_what_goes_wrong_is_raised(open_client: Open, learned: str, tmp_path: Path) -> None:
    client = open_client()
    with adapting(reason="solver_failed", detail="Shorten the length."):
        failed = client.adapt(learned, X, Y, X)
        with pytest.raises(AdaptationFailed, match=r"solver_failed: Shorten the length\."):
            failed.check()
        with pytest.raises(NotFound, match="has no weights"):
            client.download_weights(failed.id, tmp_path / "weights")
    with pytest.raises(Invalid, match="/support/x/0"):
        client.adapt(learned, [[1.0, 2.0]], [1.0], X)
    with pytest.raises(Conflict, match="no initialization"):
        client.adapt(client.submit(SPEC).id, X, Y, X)
    with pytest.raises(TimedOut, match=r"is still queued after 0\.3 s") as late:
        client.adapt(learned, X, Y, X, timeout=0.3)
    client.delete_adaptation(late.value.waited_for.id)


def test_one_that_takes_longer_than_an_answer_waits_is_asked_for_again(
    open_client: Open, learned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amaml_client.calls.MOST_WAIT", 0)
    with adapting():
        assert open_client().adapt(learned, X, Y, X).predictions == [[0.5], [0.5]]


def test_the_command_shows_predictions_curve_and_weights(amaml: Amaml, learned: str, tmp_path: Path) -> None:
    (tmp_path / "support.csv").write_text("time,y\n0.1,1\n0.2,2\n")
    (tmp_path / "query.csv").write_text("time\n0.3\n")
    files = ("--support", "support.csv", "--query", "query.csv")
    with adapting(b"weights") as asked:
        done = amaml("adapt", learned, *files, "--curve", "-o", "out", "--length", "0.5")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:3] == ["y", "0.5", "loss\tt = 0\tt = 2\tcurve"]
        assert hashlib.sha256(b"weights").hexdigest() in done.stdout
        assert (tmp_path / "out").read_bytes() == b"weights"
        assert asked[0]["support"] == {"x": [[0.1], [0.2]], "y": [[1], [2]]}
        assert asked[0]["return"] == ["predictions", "curve", "weights"]
        as_json = json.loads(amaml("adapt", learned, *files, "--json").stdout)
        assert as_json["result"]["predictions"] == [[0.5]]
    assert amaml("adapt", learned, "--support", "support.csv").returncode == 2
    assert amaml("adapt", learned, "--support", "none.csv").returncode == 2
    with adapting(reason="diverged", detail="Lower lr."):
        failed = amaml("adapt", learned, *files)
        assert (failed.returncode, "Lower lr." in failed.stderr) == (1, True)


FILES: list[tuple[str, str, dict[str, Any], Any]] = [
    ("a.json", '{"x": [[1]], "y": [2]}', {}, {"x": [[1]], "y": [2]}),
    ("a.json", '{"x": ["50"]}', {}, {"x": ["50"]}),
    ("a.csv", "a,b,c\n1,2,3\n\n4,5,6e1\n", {}, {"x": [[1, 2], [4, 5]], "y": [[3], [60]]}),
    ("a.csv", "\ufeffa,b,c\n1,2,3\n", {"targets": 2}, {"x": [[1]], "y": [[2, 3]]}),
    ("a.csv", "y1,a,y2\n1,2,3\n", {}, {"x": [[2]], "y": [[1, 3]]}),
    ("a.csv", "a,b\n1,2\n", {"inputs": 2}, {"x": [[1, 2]]}),
    ("a.csv", "a,b\n1,2\n", {"inputs": 1}, {"x": [[1]], "y": [[2]]}),
    ("a.csv", '"item", rating\n50, 4\n', {"named": True}, {"x": ["50"], "y": [[4]]}),
]


@pytest.mark.parametrize(("name", "text", "options", "rows"), FILES)
def test_rows_are_read(tmp_path: Path, name: str, text: str, options: dict[str, Any], rows: Any) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / name, **options) == rows


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[1]", "must hold one object"),
        ("a.json", '{"x": [], "z": []}', "must hold one object"),
        ("a.json", "{", "is no JSON"),
        ("a.csv", "a,y\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "a,y\n1,2\n3\n", "a.csv:3: 1 values under 2 names"),
        ("a.csv", "a,y\n1,x\n", "a.csv:2: 'x' is no finite number"),
        ("a.csv", "a,y\nnan,1\n", "a.csv:2: 'nan' is no finite number"),
        ("a.csv", "y\n1\n", "0 columns are left"),
        ("a.csv", 'a,y\n"1\n', "no CSV"),
    ],
)
def test_what_is_no_rows_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RowFileError, match=said):
        read_rows(tmp_path / name)
    with pytest.raises(RowFileError, match="can't be read"):
        read_rows(tmp_path / "none.csv")
