"""Named places where a test lets an accident happen, to the instruction.

`AMAML_FAILPOINT=checkpoint.uploaded=kill@2` has the process kill itself when it comes to that place for the second time.
Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `sleep:SECONDS`; without `@` the first time, with `@*` every time.
`AMAML_FAILPOINT_MARK` names a file that is made when it happens; once the file is there it happens no more, in whatever
process. Without `AMAML_FAILPOINT` a failpoint is a comparison with None.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "AMAML_FAILPOINT"
MARK: Final = "AMAML_FAILPOINT_MARK"

_armed = os.environ.get(VARIABLE)
_hits = 0
_counting = threading.Lock()


def failpoint(name: str) -> None:
    """The accident of this name happens here, if one was asked for."""
    if _armed is None:
        return
    wanted, _, how = _armed.partition("=")
    if wanted == name:
        action, _, hit = how.partition("@")
        if hit == "*":
            _happen(action)
        else:
            _count(action, int(hit or 1))


def _count(action: str, hit: int) -> None:
    global _hits  # noqa: PLW0603 - one place is armed in a process
    with _counting:  # several threads may come to the place at once
        _hits += 1
        hits = _hits
    if hits == hit and _is_first():
        _happen(action)


def _is_first() -> bool:
    mark = os.environ.get(MARK)
    if mark is None:
        return True
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
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
