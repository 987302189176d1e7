"""The child's side of the pipes, which trainer and adapter share."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TypeVar

from worker.processes.protocol import Accident, Message, encode

FailureT = TypeVar("FailureT", bound=Message)


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
    """Versions of the libraries on which the bits of a result depend."""
    packages = {name: version(name) for name in ("amaml-service", "numpy", "torch", "torchdiffeq")}
    return {"python": platform.python_version(), **packages}


def last_word(error: Exception, what: str, failure: Callable[[Exception], FailureT]) -> FailureT | Accident:
    """The last message for an exception that ended the work: an accident of the machine, or what `failure` makes of it."""
    from amaml.memory import is_out_of_memory  # noqa: PLC0415 - it imports torch, as whoever asks has done

    happened = None if is_out_of_memory(error) else accident(error, what)
    if happened is None:
        return failure(error)
    with suppress(OSError):  # the log may lie on the very disk that is full
        traceback.print_exception(error)
    return happened


def causes(error: Exception) -> Iterator[Exception]:
    """The exception and those that caused it."""
    found: BaseException | None = error
    while isinstance(found, Exception):
        yield found
        found = found.__cause__


def accident(error: Exception, what: str) -> Accident | None:
    """The message for an exception that is the machine's fault; None where it is the work's. `what`: trainer or adapter.

    An OSError is the machine's: what users send is read by code of ours that raises other exceptions for their faults. As the
    cause of such a one it is the machine's if it has an errno; pyarrow's for a damaged file has none.
    """
    for one in causes(error):
        if isinstance(one, OSError) and (one is error or one.errno is not None):
            why = one.strerror or str(one)
            where = f", {Path(one.filename).name}" if isinstance(one.filename, str) else ""
            return Accident(detail=f"The machine of the {what} couldn't read or write its files ({why}{where})")
    return None


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
