"""Failpoints: named places in the code where a test can make an accident happen.

`AMAML_FAILPOINT=checkpoint.uploaded=kill@2` has the process kill itself when it comes to that place for the second time.
Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `sleep:SECONDS`; without `@` the first time, with `@*` every time.
`AMAML_FAILPOINT=@PATH` reads the accident from a file whenever a place is passed, so that a process which runs already can be
armed; once it has happened the file is renamed (see `happened`), and it happens no more in any process.
Without `AMAML_FAILPOINT` a failpoint is a comparison with None.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "AMAML_FAILPOINT"

_armed = os.environ.get(VARIABLE)
_hits = 0
_counting = threading.Lock()


def failpoint(name: str) -> None:
    """Does the accident that was asked for at the place of this name, if any."""
    if _armed is None:
        return
    wanted, _, how = _accident(_armed).partition("=")
    if wanted == name:
        action, _, hit = how.partition("@")
        if hit == "*":
            _happen(action)
        else:
            _count(action, int(hit or 1))


def happened(path: Path) -> Path:
    """What a file that has armed a failpoint is called once the accident has happened."""
    return path.with_name(f"{path.name}.happened")


def _accident(armed: str) -> str:
    if not armed.startswith("@"):
        return armed
    try:
        return Path(armed[1:]).read_text(encoding="utf-8")
    except FileNotFoundError:  # not armed yet, or it has happened
        return ""


def _count(action: str, hit: int) -> None:
    global _hits  # noqa: PLW0603 - one place is armed in a process
    with _counting:  # several threads may come to the place at once
        _hits += 1
        come = _hits == hit
        if come:
            _hits = 0  # a file may arm it again
    if come and _is_first():
        _happen(action)


def _is_first() -> bool:
    """Claims the accident that a file asks for: True for the first process that calls it, False for all later ones."""
    if _armed is None or not _armed.startswith("@"):
        return True
    path = Path(_armed[1:])
    try:
        path.rename(happened(path))
    except FileNotFoundError:
        return False
    return True


def _happen(action: str) -> None:
    match action.partition(":"):
        case "kill", "", "":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop", "", "":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep", ":", seconds:
            time.sleep(float(seconds))
        case _:
            raise ValueError(f"{VARIABLE} asks for {action!r}: use kill, stop or sleep:SECONDS")
