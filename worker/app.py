"""The Celery app: `celery -A worker.app worker`.

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
from datetime import timedelta
from functools import cached_property
from typing import Any
from uuid import uuid4

from celery import Celery, signals
from celery.apps.worker import Worker
from celery.platforms import SecurityWarning

from service.store import workers
from service.store.database import transaction
from service.webhooks.settings import settings as webhook_settings
from worker.adaptations import Adaptations
from worker.dataset_checks import SECONDS_BETWEEN_LOOKS, DatasetChecks
from worker.deliveries import Senders
from worker.duty import Duty
from worker.folder import WorkerFolder
from worker.outbox import TASK, OutboxPublisher
from worker.reconciler import SECONDS, Reconciler
from worker.settings import settings
from worker.slots import Slots
from worker.spare import Spares

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SIGNS_OF_LIFE = 2.0
SECONDS_BETWEEN_CATCHING_UP = 2.0
SECONDS_FOR_SENDERS = 2.0
"""That a worker which is to end gives deliveries that are under way."""


# Celery warns of root since a pickled message would run as root; only JSON is accepted here.
warnings.filterwarnings("ignore", category=SecurityWarning)


class QuietWorker(Worker):  # type: ignore[misc]
    """A Celery worker that doesn't talk to its like: who lives, and who leads, stands in Postgres."""

    def prepare_args(self, **options: Any) -> dict[str, Any]:
        return {**options, "without_gossip": True, "without_mingle": True, "without_heartbeat": True}

    def emit_banner(self) -> None:
        """No banner: our own lines say what starts."""


class App(Celery):  # type: ignore[misc]
    @cached_property
    def Worker(self) -> type[QuietWorker]:  # noqa: N802 - Celery's name
        return self.subclass_with_self(QuietWorker)  # type: ignore[no-any-return]


app = App("amaml", broker=settings().broker_url)
app.conf.update(
    # Threads: a task only supervises a process of its own. Forking after CUDA or threads have begun breaks both.
    worker_pool="worker.pool:Threads",
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
    # No commands by broker: whoever can write to it must not be able to stop workers.
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    # The broker may come later than the worker, and go away at any time.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_connect_timeout": 3, "socket_keepalive": True, "health_check_interval": 10},
    # A task that runs while the connection is lost goes on: its lease is Postgres' matter.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Our logging stays ours.
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)

worker_id = uuid4()
stopping = threading.Event()
folder = WorkerFolder(settings().folder, worker_id)
spares = Spares(settings().worker_slots)
slots = Slots(worker_id, settings(), spares, folder, stopping)
reconciler = Reconciler(worker_id, timedelta(hours=settings().adaptation_hours))
senders = Senders(webhook_settings(), stopping).duties()
adaptations = [
    Adaptations(f"adapter {number}", settings(), folder.path, stopping, lambda: spares.what_it_is is not None)
    for number in range(settings().adapters)
]
checks = Duty("data sets", DatasetChecks(settings(), folder.path, stopping).step, SECONDS_BETWEEN_LOOKS, stopping)


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def wake() -> None:
    """There may be work."""
    slots.work_off_queue()


def _set_up_logging(**_: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # Celery tells of every wake-up; what the jobs do is told by us.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _start(**_: Any) -> None:
    """Celery would log an error and serve on, as a worker that does nothing."""
    try:
        _start_everything()
    except Exception as error:
        log.critical("this worker can't start: %s", error, exc_info=True)
        raise SystemExit(1) from None  # which Celery lets through


def _start_everything() -> None:
    """Before the broker is reached: repairs, spares and, if need be, jobs don't wait for it."""
    threading.excepthook = _end_on_a_fault
    folder.open()
    heartbeat = Duty("heartbeat", sign_of_life, SECONDS_BETWEEN_SIGNS_OF_LIFE, stopping)
    spares.start(heartbeat.ring)
    Duty("reconciler", reconciler.round, SECONDS, stopping).start()
    bells = {"data sets": [checks.ring]}
    OutboxPublisher(app, stopping, bells).start()
    checks.start()
    for sender in senders:
        sender.start()
    for one in adaptations:
        one.start()
    Duty("catch-up", slots.catch_up, SECONDS_BETWEEN_CATCHING_UP, stopping).start()
    heartbeat.start()


def _tell_of_readiness(**_: Any) -> None:
    log.info("worker %s is ready for wake-ups, with %d slots", worker_id, settings().worker_slots)


def sign_of_life() -> None:
    """Tells that this worker lives, once jobs would run: not before a trainer is ready."""
    ready = spares.what_it_is
    if ready is not None:
        with transaction() as session:
            gpu = None if ready.gpu is None else ready.gpu.model_dump(include={"name", "memory_bytes", "uuid"})
            workers.seen(session, worker_id, socket.gethostname(), os.getpid(), ready.devices, gpu)


def _stop(**_: Any) -> None:
    """Runs in a signal handler. The supervisors see it, have their trainers write a checkpoint, and requeue."""
    stopping.set()


def _finish(**_: Any) -> None:
    """No task runs any more; a job that was taken up without a wake-up may."""
    checks.ring()
    spares.close()
    slots.wait_until_idle()
    checks.join()
    for one in adaptations:
        one.join()
    # What a slow receiver keeps a sender from is sent again, under the same id.
    for sender in senders:
        sender.join(SECONDS_FOR_SENDERS / len(senders))
    folder.close()
    with transaction() as session:
        workers.gone(session, worker_id)
    reconciler.close()


def _end_on_a_fault(fault: threading.ExceptHookArgs) -> None:
    """A duty that died of a fault ends the worker in good order, to be started anew."""
    log.critical("thread %s died of a fault, so this worker ends", fault.thread, exc_info=fault.exc_value)
    os.kill(os.getpid(), signal.SIGTERM)


for event, reaction in {
    signals.setup_logging: _set_up_logging,
    signals.worker_init: _start,
    signals.worker_ready: _tell_of_readiness,
    signals.worker_shutting_down: _stop,
    signals.worker_shutdown: _finish,
}.items():
    event.connect(reaction)
