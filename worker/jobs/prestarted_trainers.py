"""Prestarted trainers: they have imported everything and wait for a job, as many as there are slots.

Importing torch takes seconds; a job that is claimed starts in a trainer that has done it before. A trainer that ended a
job in good order is warm too and waits for another, save on CUDA machines, where only its end frees the device's memory.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread

from worker.processes.parent import SECONDS_BETWEEN_WORK, SECONDS_TO_GET_READY, TrainerProcess
from worker.processes.protocol import Ready

log = logging.getLogger(__name__)

LONGEST_BACK_OFF = 30.0
MOST_JOBS = 100
"""Jobs that one trainer runs before it is replaced, which bounds the memory that jobs may leave behind."""
HEAD_START = 2.0
"""How long a job has the cores to itself before the next trainer is started."""


class PrestartedTrainers:
    """Keeps `count` ready trainers. Its thread starts them all and never ends before the process: see TrainerProcess."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ready: deque[TrainerProcess] = deque()
        self._starting: TrainerProcess | None = None
        self._changed = Condition()
        self._closed = False
        self._start_after = float("-inf")
        self.what_it_is: Ready | None = None
        """What the first trainer reported when it was ready (devices, versions, GPU); None until then."""

    def start(self, when_ready: Callable[[], None]) -> None:
        """`when_ready` is called once, when the first trainer is ready and so a job could run."""
        self._when_ready = when_ready
        Thread(target=self._keep, name="prestarted trainers", daemon=True).start()

    def take(self) -> TrainerProcess | None:
        """A ready trainer, waited for if need be; None once they are closed."""
        with self._changed:
            while not self._closed:
                while self._ready:
                    trainer = self._ready.popleft()
                    self._start_after = time.monotonic() + HEAD_START
                    if trainer.is_alive:
                        return trainer
                self._start_after = time.monotonic()
                self._changed.notify_all()
                self._changed.wait()
        return None

    def give_back(self, trainer: TrainerProcess) -> None:
        """Takes back a trainer that got no job, or has finished one and is ready for the next; ends it if it can't be used
        again."""
        is_ready = trainer.wait_until_ready(SECONDS_BETWEEN_WORK) is not None
        with self._changed:
            if not self._closed and is_ready and trainer.is_alive and trainer.jobs < self._most_jobs():
                self._ready.appendleft(trainer)
                self._changed.notify_all()
                return
        trainer.kill()

    def _most_jobs(self) -> int:
        assert self.what_it_is is not None, "a trainer was ready"
        return 1 if "cuda" in self.what_it_is.devices else MOST_JOBS

    def close(self) -> None:
        """Ends the idle trainers; from now on `take` gives None."""
        with self._changed:
            self._closed = True
            waiting = [*self._ready, *([self._starting] if self._starting else [])]
            self._ready.clear()
            self._changed.notify_all()
        for trainer in waiting:
            trainer.kill()

    def _keep(self) -> None:
        back_off = 1.0
        while True:
            with self._changed:
                self._drop_dead()
                if self._closed or len(self._ready) >= self._count or time.monotonic() < self._start_after:
                    self._changed.wait(1.0)
                    continue
                self._starting = TrainerProcess()
            ready = self._starting.wait_until_ready(SECONDS_TO_GET_READY)
            with self._changed:
                trainer, self._starting = self._starting, None
                if ready is not None and not self._closed:
                    if self.what_it_is is None:
                        self.what_it_is = ready
                        _tell_of_gpus(ready)
                        self._when_ready()
                    self._ready.append(trainer)
                    self._changed.notify_all()
                    back_off = 1.0
                    continue
            trainer.kill()
            if not self._closed:
                log.error(
                    "a trainer didn't get ready (its own lines above say why); another is started in %g s", back_off
                )
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, back_off)
                back_off = min(2 * back_off, LONGEST_BACK_OFF)

    def _drop_dead(self) -> None:
        dead = [trainer for trainer in self._ready if not trainer.is_alive]
        for trainer in dead:
            log.warning("trainer %d ended while it waited; another is started", trainer.pid)
            self._ready.remove(trainer)
            trainer.wait()


def _tell_of_gpus(ready: Ready) -> None:
    """Logs which GPU this worker's trainers use, and what is wrong about it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if ready.gpu is not None:
        log.info("jobs for cuda run on %s (%s)", ready.gpu.name, ready.gpu.uuid)
        if ready.gpu.others:
            log.warning(
                "%d more GPUs are visible, and a worker uses the first alone: start a worker for each, with a "
                "CUDA_VISIBLE_DEVICES of its own",
                ready.gpu.others,
            )
    elif visible not in ("", "-1") and "cuda" not in ready.devices:
        log.warning(
            "CUDA_VISIBLE_DEVICES is %s, and PyTorch finds no GPU there, so this worker runs jobs for the CPU: look at "
            "nvidia-smi -L, and whether this PyTorch is built for CUDA",
            visible,
        )
