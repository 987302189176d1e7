"""Wake-ups leave the outbox once the broker has them, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from threading import Event

import pytest
import redis
from celery import Celery
from sqlalchemy import func, select, update

from launcher.ports import free_port
from service.core import outbox
from service.core.database import transaction
from service.core.notifications import WORK, Listener
from service.core.tables import OutboxMessage
from tests.support.waiting import CEILING_SECONDS, wait_until
from worker.maintenance.outbox import PLENTY, publish, publish_all
from worker.processes.periodic_task import PeriodicTask, Unreachable

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("store")]


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    yield from _app(broker_url)


def _app(url: str) -> Iterator[Celery]:
    app = Celery(broker=url, set_as_current=False)
    app.conf.update(task_default_queue="amaml", broker_transport_options={"socket_connect_timeout": 1})
    yield app
    app.close()


def put(count: int) -> None:
    with transaction() as session:
        for _ in range(count):
            outbox.put(session, "wake")


def unsent() -> int:
    with transaction() as session:
        return session.scalars(
            select(func.count()).select_from(OutboxMessage).where(OutboxMessage.sent_at.is_(None))
        ).one()


def in_queue(broker_url: str) -> int:
    with redis.Redis.from_url(broker_url) as broker:
        return int(broker.llen("amaml"))  # type: ignore[arg-type]


def test_each_message_is_published_once(app: Celery, broker_url: str) -> None:
    put(3)
    assert publish(app) == 3
    assert publish(app) == 0
    assert (unsent(), in_queue(broker_url)) == (0, 3)


def test_a_queue_with_plenty_of_wake_ups_gets_no_more(app: Celery, broker_url: str) -> None:
    put(PLENTY + 10)
    publish(app)
    put(1)
    publish(app)
    assert (unsent(), in_queue(broker_url)) == (0, PLENTY)


def test_messages_that_another_sender_holds_are_left_to_it(app: Celery) -> None:
    put(2)
    with transaction() as session:
        assert len(outbox.take_unsent(session, 1)) == 1
        assert publish(app) == 1
    assert unsent() == 1


def test_with_the_broker_down_messages_wait() -> None:
    put(2)
    for app in _app(f"redis://127.0.0.1:{free_port()}/0"):
        with pytest.raises(Unreachable, match="wake-ups wait in the outbox"):
            publish_all(app)
    assert unsent() == 2


def test_the_publisher_hears_of_messages_and_waits_for_the_broker(app: Celery, broker_url: str) -> None:
    stopping = Event()
    publisher = PeriodicTask("outbox", partial(publish_all, app), CEILING_SECONDS, stopping)
    listener = Listener(WORK, lambda _: publisher.wake())
    publisher.start()
    listener.start()
    for count in (1, 2, 3):
        put(1)
        wait_until(lambda want=count: in_queue(broker_url) == want)
    stopping.set()
    publisher.wake()
    listener.stop()
    for thread in (publisher, listener):
        thread.join(CEILING_SECONDS)
        assert not thread.is_alive()


def test_a_recent_message_makes_another_needless() -> None:
    def ask_again() -> int:
        with transaction() as session:
            outbox.put_unless_recent(session, "wake", timedelta(seconds=30))
        return unsent()

    assert [ask_again(), ask_again()] == [1, 1]
    with transaction() as session:
        session.execute(update(OutboxMessage).values(sent_at=func.now()))
    assert ask_again() == 0, "sent a moment ago"
    with transaction() as session:
        session.execute(update(OutboxMessage).values(created_at=func.now() - timedelta(minutes=1)))
    assert ask_again() == 1


def test_sent_messages_are_forgotten_after_a_while(app: Celery) -> None:
    put(2)
    publish(app)
    put(1)
    with transaction() as session:
        session.execute(
            update(OutboxMessage)
            .where(OutboxMessage.sent_at.is_not(None))
            .values(sent_at=func.now() - timedelta(hours=2))
        )
        outbox.prune(session, timedelta(hours=1))
    with transaction() as session:
        assert session.scalars(select(func.count()).select_from(OutboxMessage)).one() == 1
