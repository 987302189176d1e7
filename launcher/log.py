"""One stream for the lines of all children, each under its child's name."""

from __future__ import annotations

import threading
from typing import TextIO

_WIDTH = len("launcher")


class Log:
    """Writes `name | line`; safe to call from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def line(self, name: str, text: str) -> None:
        with self._lock:
            try:
                self._stream.write(f"{name:<{_WIDTH}} | {text}\n")
                self._stream.flush()
            except (OSError, ValueError):
                # The reader of our output is gone (`… | head`, a closed terminal). The children's output must still be read,
                # and stopping them must not fail.
                return
