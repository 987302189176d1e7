"""Processes of a killed launcher: those in its file are ended, others with the same numbers aren't."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import leftovers
from launcher.children import Child, Command
from launcher.log import Log


def test_noted_children_are_ended_and_the_note_removed(tmp_path: Path) -> None:
    note = tmp_path / "children.json"
    child = Child(Command("sleeper", ["/bin/sleep", "600"]), Log(io.StringIO()))
    child.start()
    leftovers.note(note, [child])
    stream = io.StringIO()
    leftovers.end_all(note, Log(stream))
    assert "ending sleeper" in stream.getvalue()
    assert leftovers.birth(child.pid) is None  # a zombie until we reap it, which counts as ended
    child.stop()
    assert not note.exists()


def test_another_process_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    note = tmp_path / "children.json"
    stranger = subprocess.Popen(["/bin/sleep", "600"])
    try:
        note.write_text(json.dumps([{"name": "api", "pid": stranger.pid, "birth": "long ago", "signal": 15}]))
        leftovers.end_all(note, Log(io.StringIO()))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_number_without_a_process(tmp_path: Path) -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    assert leftovers.birth(gone.pid) is None
    note = tmp_path / "children.json"
    note.write_text(json.dumps([{"name": "api", "pid": gone.pid, "birth": None, "signal": 15}]))
    leftovers.end_all(note, Log(io.StringIO()))


@pytest.mark.skipif(sys.platform != "linux", reason="zombies are seen in /proc")
def test_a_zombie_has_ended() -> None:
    zombie = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert leftovers.has_ended(zombie.pid)
    zombie.wait()
    assert not leftovers.has_ended(os.getpid())
