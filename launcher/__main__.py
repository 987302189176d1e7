"""`python -m launcher up`: the whole service in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from threading import Event
from types import FrameType

from launcher.children import Halted, StartFailed
from launcher.home import Home
from launcher.log import Log
from launcher.stack import Stack

_SAME_REQUEST_SECONDS = 5.0
"""Signals within this time count as one request: a terminal's Ctrl-C can arrive twice, from the terminal and from make."""


def up() -> None:
    """Start the database, the broker, the API and workers on this machine, and keep them running until Ctrl-C. There is one
    worker for the CPU and one for each GPU.

    AMAML_HOME names the data folder (default .amaml), AMAML_PORT the port (default 8000; 0 for any free one), AMAML_GPUS the GPUs
    (default: all; `none` for none).
    """
    log = Log(sys.stdout)
    halt, hurry = Event(), Event()
    _stop_on_signals(halt, hurry)
    try:
        Stack(Home(Path(os.environ.get("AMAML_HOME") or ".amaml")), _port(), log, halt, hurry).run()
    except StartFailed as error:
        log.line("launcher", str(error))
        sys.exit(1)
    except Halted:
        pass  # a stop during the start is a good end, too
    log.line("launcher", "stopped")


def _port() -> int:
    given = os.environ.get("AMAML_PORT") or "8000"
    if not given.isdecimal() or int(given) > 65535:
        raise StartFailed(f"AMAML_PORT={given} isn't a port: give a number from 0 (any free port) to 65535")
    return int(given)


def _stop_on_signals(halt: Event, hurry: Event) -> None:
    first: list[float] = []

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            halt.set()
        elif now - first[0] > _SAME_REQUEST_SECONDS:
            hurry.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has set SIG_IGN
        signal.signal(signal.SIGHUP, on_signal)


if __name__ == "__main__":
    if sys.argv[1:] != ["up"]:
        sys.exit("usage: python -m launcher up")
    up()
