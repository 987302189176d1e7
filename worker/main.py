"""The Celery app: `celery -A worker.main worker`.

Celery is only the wake-up: its one task claims jobs from Postgres and supervises their trainers. Its messages may be
lost, doubled or late without harm, and every setting below follows from that.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property, partial
from itertools import chain
from typing import Any
from uuid import uuid4

from celery import Celery, signals
from celery.apps.worker import Worker
from celery.platforms import SecurityWarning

from service.core.database import transaction
from service.core.notifications import WORK, Listener, Work
from service.webhooks.settings import settings as webhook_settings
from service.workers import store as workers
from worker.adapter import adaptations
from worker.adapter.adaptations import Adaptations
from worker.datasets import checks as dataset_checks
from worker.datasets.checks import DatasetChecks
from worker.jobs.prestarted_trainers import PrestartedTrainers
from worker.jobs.slots import Slots
from worker.maintenance import outbox
from worker.maintenance.folder import WorkerFolder
from worker.maintenance.outbox import TASK, publish_all
from worker.maintenance.reconciler import SECONDS, Reconciler
from worker.processes.periodic_task import PeriodicTask
from worker.settings import settings
from worker.webhooks.deliveries import Senders

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SIGNS_OF_LIFE = 2.0
SECONDS_BETWEEN_CATCHING_UP = 2.0
SECONDS_FOR_SENDERS = 2.0
"""How long a worker that ends waits for deliveries that are under way."""


# Celery warns against running as root, since a pickled message could run code; only JSON is accepted here.
warnings.filterwarnings("ignore", category=SecurityWarning)


class QuietWorker(Worker):  # type: ignore[misc]
    """A Celery worker that exchanges no messages with other workers: which of them live, and which leads, stands in Postgres."""

    def prepare_args(self, **options: Any) -> dict[str, Any]:
        return {**options, "without_gossip": True, "without_mingle": True, "without_heartbeat": True}

    def emit_banner(self) -> None:
        """Prints nothing: the log says what starts."""


class App(Celery):  # type: ignore[misc]
    running: RunningWorker | None = None
    """What this process runs; None until Celery starts its worker, and in processes that only send messages."""

    @cached_property
    def Worker(self) -> type[QuietWorker]:  # noqa: N802 - Celery's name
        return self.subclass_with_self(QuietWorker)  # type: ignore[no-any-return]


app = App("amaml", broker=settings().broker_url)
app.conf.update(
    # Threads: a task only supervises a process of its own. Forking after CUDA or threads have begun breaks both.
    worker_pool="worker.processes.celery_threads:Threads",
    worker_concurrency=settings().worker_slots,
    # The queue is Postgres. A wake-up is done with once it is taken, so nothing is ever redelivered because it ran long.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    # A busy worker takes no wake-up that an idle one could use.
    worker_disable_prefetch=True,
    # Nobody asks for a task's result: it stands in Postgres.
    task_ignore_result=True,
    result_backend=None,
    # JSON only: a message can't carry code.
    task_serializer="json",
    accept_content=["json"],
    task_default_queue="amaml",
    # No remote control: whoever can write to the broker must not be able to stop workers.
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    # The broker may come later than the worker, and go away at any time.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_connect_timeout": 3, "socket_keepalive": True, "health_check_interval": 10},
    # A task goes on while the broker is away: its lease lies in Postgres.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Logging is set up below, not by Celery.
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


class RunningWorker:
    """What one worker process does: its parts, put together, started in order and ended in order."""

    def __init__(self) -> None:
        """Puts the parts together and starts none of them."""
        own = settings()
        self._worker_id, self._stopping = uuid4(), threading.Event()
        self._folder = WorkerFolder(own.folder, self._worker_id)
        self._trainers = PrestartedTrainers(own.worker_slots)
        self.slots = Slots(self._worker_id, own, self._trainers, self._folder, self._stopping)
        self._reconciler = Reconciler(self._worker_id, timedelta(hours=own.adaptation_hours))
        self._senders = Senders(webhook_settings(), self._stopping).periodic_tasks()
        self._adaptations = [
            Adaptations(f"adapter {number}", own, self._folder.path, self._stopping, self._trainer_is_ready)
            for number in range(own.adapters)
        ]
        checks = DatasetChecks(own, self._folder.path, self._stopping)
        self._woken: dict[Work, list[PeriodicTask]] = {
            "outbox": [self._periodic("outbox", partial(publish_all, app), outbox.SECONDS_BETWEEN_LOOKS)],
            "data sets": [self._periodic("data sets", checks.step, dataset_checks.SECONDS_BETWEEN_LOOKS)],
            "adaptations": [
                self._periodic(one.name, one.step, adaptations.SECONDS_BETWEEN_LOOKS) for one in self._adaptations
            ],
        }
        """What a notification wakes."""
        self._listener = Listener(WORK, self._hear)

    def start(self) -> None:
        """Called before the broker is reached: repairs, trainers and even jobs don't need it."""
        self._folder.open()
        heartbeat = self._periodic("heartbeat", self._sign_of_life, SECONDS_BETWEEN_SIGNS_OF_LIFE)
        self._trainers.start(lambda: _wake(heartbeat, *self._woken["adaptations"]))
        self._periodic("reconciler", self._reconciler.round, SECONDS).start()
        for task in (*chain(*self._woken.values()), *self._senders):
            task.start()
        self._listener.start()
        self._periodic("catch-up", self.slots.catch_up, SECONDS_BETWEEN_CATCHING_UP).start()
        heartbeat.start()
        log.info("worker %s starts, with %d slots", self._worker_id, settings().worker_slots)

    def stop(self) -> None:
        """Supervisors then have their trainers write a checkpoint, and put their jobs back into the queue."""
        self._stopping.set()

    def finish(self) -> None:
        """Called after `stop`, when no task of Celery runs any more; a job that was claimed without a wake-up may still run."""
        self._listener.stop()
        self._hear(None)
        self._trainers.close()
        self.slots.wait_until_idle()
        for task in chain(*self._woken.values()):
            task.join()
        for one in self._adaptations:
            one.close()
        # A delivery that a slow receiver holds up is sent again by another worker, under the same id.
        for sender in self._senders:
            sender.join(SECONDS_FOR_SENDERS / len(self._senders))
        self._folder.close()
        with transaction() as session:
            workers.gone(session, self._worker_id)
        self._reconciler.close()

    def _hear(self, payload: str | None) -> None:
        """Wakes what has work; None: everything, since notifications may have been lost."""
        _wake(*chain(*(tasks for work, tasks in self._woken.items() if payload in (work, None))))

    def _periodic(self, name: str, step: Callable[[], None], pause: float) -> PeriodicTask:
        return PeriodicTask(name, step, pause, self._stopping)

    def _trainer_is_ready(self) -> bool:
        return self._trainers.what_it_is is not None

    def _sign_of_life(self) -> None:
        """Writes that this worker lives, once a trainer is ready and so jobs would run."""
        ready = self._trainers.what_it_is
        if ready is not None:
            with transaction() as session:
                gpu = None if ready.gpu is None else ready.gpu.model_dump(include={"name", "memory_bytes", "uuid"})
                workers.seen(session, self._worker_id, socket.gethostname(), os.getpid(), ready.devices, gpu)


def _wake(*tasks: PeriodicTask) -> None:
    for task in tasks:
        task.wake()


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def wake() -> None:
    """There may be work."""
    if app.running is not None:
        app.running.slots.work_off_queue()


def _set_up_logging(**_: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # Celery logs every wake-up; what jobs do is logged here.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _start(**_: Any) -> None:
    """Ends the process on any error, which Celery would log and then go on as a worker that does nothing."""
    try:
        threading.excepthook = _end_on_a_fault
        app.running = RunningWorker()
        app.running.start()
    except Exception as error:
        log.critical("this worker can't start: %s", error, exc_info=True)
        raise SystemExit(1) from None  # which Celery lets through


def _log_readiness(**_: Any) -> None:
    log.info("the broker is reached: this worker hears wake-ups")


def _stop(**_: Any) -> None:
    """Runs in a signal handler."""
    if app.running is not None:
        app.running.stop()


def _finish(**_: Any) -> None:
    if app.running is not None:
        app.running.finish()


def _end_on_a_fault(fault: threading.ExceptHookArgs) -> None:
    """A periodic task that died of a fault ends the worker in good order, to be started anew."""
    log.critical("thread %s died of a fault, so this worker ends", fault.thread, exc_info=fault.exc_value)
    os.kill(os.getpid(), signal.SIGTERM)


for event, reaction in {
    signals.setup_logging: _set_up_logging,
    signals.worker_init: _start,
    signals.worker_ready: _log_readiness,
    signals.worker_shutting_down: _stop,
    signals.worker_shutdown: _finish,
}.items():
    event.connect(reaction)
