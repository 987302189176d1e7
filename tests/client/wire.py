"""A connection to a server that can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from launcher.ports import HOST


@dataclass
class Wire:
    """A TCP connection's worth of proxy before the server; the first connections are cut after so many answer bytes."""

    target: int
    cuts: list[int] = field(default_factory=list)
    """Answer bytes of the first, second, … connection before it is cut."""
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                near, _ = self._listener.accept()
                left = self.cuts[self.connections] if self.connections < len(self.cuts) else None
                self.connections += 1
                far = socket.create_connection((HOST, self.target))
                threading.Thread(target=_pump, args=(near, far, None), daemon=True).start()
                threading.Thread(target=_pump, args=(far, near, left), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, left: int | None) -> None:
    """Carries bytes over until either end closes, or `left` bytes are through; then closes both."""
    with suppress(OSError):
        while left is None or left > 0:
            piece = source.recv(65536 if left is None else min(left, 65536))
            if not piece:
                break
            target.sendall(piece)
            left = None if left is None else left - len(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
