"""The child's side of the pipes: what trainer and adapter have in common."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from importlib.metadata import version
from threading import Lock

from worker.protocol import Message, encode


class Wire:
    """The way to the worker: a copy of stdout. What anything prints goes to stderr instead."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = Lock()

    def send(self, message: Message) -> None:
        line = encode(message)
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


def die_with_the_worker() -> None:
    """Asks Linux to kill this process when the worker dies: even if it is stopped, or deep in native code."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def versions() -> dict[str, str]:
    """Of what the bits of a result depend on."""
    packages = {name: version(name) for name in ("amaml-service", "numpy", "torch", "torchdiffeq")}
    return {"python": platform.python_version(), **packages}


def is_out_of_memory(error: Exception) -> bool:
    import torch  # noqa: PLC0415 - whoever asks has imported it

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # torch has no exception of its own for an allocation that the host refused.
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
