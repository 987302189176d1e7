"""The worker's side of its children (trainers, adapters): start one, exchange messages with it, kill it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, Generic, TypeVar

from pydantic import ValidationError

from worker.processes.protocol import (
    Adapt,
    FromAdapter,
    FromTrainer,
    Message,
    Ready,
    Run,
    ToTrainer,
    encode,
    from_adapter,
    from_trainer,
)

log = logging.getLogger(__name__)


TRAINER: Final = os.environ.get("AMAML_TRAINER_MODULE", "worker.trainer")
"""The module that is started as trainer. Tests of what surrounds it name a stub that speaks the protocol and trains nothing."""

SECONDS_TO_GET_READY: Final = 120.0
"""A new child that takes longer than this is killed: it imports PyTorch and may initialize its devices."""
SECONDS_BETWEEN_WORK: Final = 10.0
"""A child that takes longer than this to get ready for its next piece of work is killed."""

SaidT = TypeVar("SaidT", bound=Message)


@dataclass(frozen=True)
class Gone:
    """The child closed its end of the pipe: it has ended or is about to."""


class ChildProcess(Generic[SaidT]):
    """A child and the pipes to it. Start it in a thread that outlives it: Linux kills it when that thread ends."""

    def __init__(self, command: Sequence[str], read: Callable[[bytes], SaidT]) -> None:
        self._read = read
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                # Whether CUDA is there is asked of the driver's library without starting CUDA in the process.
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                # Both are read when CUDA starts: without the first cuBLAS isn't deterministic, and the second, had somebody set
                # it to 1, would overrule that float32 isn't rounded to TF32.
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                "NVIDIA_TF32_OVERRIDE": "0",
                "PYTHONHASHSEED": "0",
                # Threads of a small product that wait by spinning take the cores from whoever has the work: on two busy
                # cores an evaluation took 31 s so, and 2.3 s with threads that sleep.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            start_new_session=True,
        )
        self._said: SimpleQueue[SaidT | Gone] = SimpleQueue()
        self._ready: Ready | None = None
        Thread(target=self._listen, name=f"{command[0]}-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _send(self, message: Message) -> None:
        """Sends a message; does nothing if the child has ended, which `receive` reports."""
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def receive(self, timeout: float) -> SaidT | Gone | None:
        """The next message; None if there was none within `timeout` seconds."""
        try:
            return self._said.get(timeout=max(0.0, timeout))
        except Empty:
            return None

    def wait_until_ready(self, timeout: float) -> Ready | None:
        """The message by which the child says that it can be given work, at first and after each piece of it; None if it didn't
        come within `timeout` seconds, or the child ended."""
        if self._ready is None:
            said = self.receive(timeout)
            self._ready = said if isinstance(said, Ready) else None
        return self._ready

    def kill(self) -> None:
        """Ends it and waits until it is gone."""
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Waits for its end; the exit status, negative for a signal."""
        status = self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return status

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    self._said.put(self._read(line))
                except ValidationError:
                    log.exception(
                        "child %d sent a line that isn't in the protocol, and is killed: %r", self.pid, line[:500]
                    )
                    self._process.kill()
                    break
        self._said.put(Gone())


class TrainerProcess(ChildProcess[FromTrainer]):
    """A trainer: see worker.trainer."""

    def __init__(self) -> None:
        super().__init__([TRAINER], from_trainer)
        self.jobs = 0
        """How many jobs it was given."""

    def send(self, message: ToTrainer) -> None:
        if isinstance(message, Run):
            self.jobs += 1
            self._ready = None
        self._send(message)


class AdapterProcess(ChildProcess[FromAdapter]):
    """An adapter: see worker.adapter."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(["worker.adapter", str(memory_bytes)], from_adapter)
        self.requests = 0
        """How many adaptations it was given."""

    def send(self, message: Adapt) -> None:
        self.requests += 1
        self._ready = None
        self._send(message)
