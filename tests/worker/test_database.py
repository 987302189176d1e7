"""A process that is stopped amid a transaction must not block the others for good."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.store.claims import lapsed
from service.store.database import IDLE_SECONDS, engine, is_away, transaction
from tests.worker.conftest import spec, submit
from tests.worker.test_claims import lapse, taken


@pytest.mark.usefixtures("store")
def test_locks_of_a_stopped_process_are_let_go_of() -> None:
    job_id = submit(spec())
    taken()
    lapse(job_id)
    stopped = engine().connect()
    stopped.execute(text("SELECT id FROM jobs FOR UPDATE"))
    began = time.monotonic()
    while True:
        with transaction() as session:
            if lapsed(session) is not None:
                break
        assert time.monotonic() - began < IDLE_SECONDS + 3
        time.sleep(0.1)
    assert time.monotonic() - began > IDLE_SECONDS - 1
    with pytest.raises(DBAPIError) as cut:
        stopped.execute(text("SELECT 1"))
    assert is_away(cut.value)
    stopped.close()
