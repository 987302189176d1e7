"""Checks of data sets whose process, machine or bounds give out: what is tried again, what ends as invalid, what is forgotten."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest

from amaml.dataset_format import Detected
from amaml.dataset_report import DatasetReport
from service.core import blobs
from service.core.database import transaction
from service.datasets import checks as dataset_checks
from service.datasets import store as datasets
from service.datasets.checks import MAX_BREAKDOWNS, MAX_TRIES, Check
from service.datasets.tables import Dataset
from tests.support.api import client, new_tenant, serving
from tests.support.jobs import workspace
from tests.support.waiting import wait_until
from tests.support.workers import child_of
from worker.datasets.checks import VALIDATOR, DatasetChecks
from worker.maintenance.reconciler import end_one_lapsed_lease
from worker.processes.periodic_task import PeriodicTask
from worker.processes.protocol import EXIT_OUT_OF_MEMORY
from worker.settings import WorkerSettings

pytestmark = pytest.mark.usefixtures("store")

CSV = b"user,item,rating\n1,10,4.0\n1,11,2.5\n2,10,1\n"
LEASE = timedelta(minutes=1)

DIES_AFTER_ITS_REPORT = """
import os, sys
from pathlib import Path
from worker.datasets.validator import inspect
format_, families, path, *_ = sys.argv[1:]
sys.stdout.write(inspect(Path(path), format_, families.split(",")).model_dump_json())
sys.stdout.flush()
{accident}
"""
HANGS_AFTER_ITS_REPORT = """
import signal, sys
sys.stdout.write('{"rows": 3, "tasks": 2}')
sys.stdout.flush()
signal.pause()
"""
DIES_AT_FIRST = """
import os, runpy, sys
from pathlib import Path
with Path({count!r}).open("ab", buffering=0) as count:
    count.write(b".")
    if count.tell() <= {times}:
        sys.stdout.write('{{"rows": 3, "ta')
        sys.stdout.flush()
        {accident}
runpy.run_module("worker.datasets.validator", run_name="__main__", alter_sys=True)
"""
"""Half a report and an accident, so many times; after that it is the real validator."""

ACCIDENTS = ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(3)", "os._exit(0)"]


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], list[str]]:
    """The command of a script that speaks the validator's protocol."""

    def command(text: str) -> list[str]:
        path = tmp_path / "validator.py"
        path.write_text(text)
        return [sys.executable, "-P", str(path)]

    return command


def checks(folder: Path, validator: Sequence[str] = VALIDATOR, **settings: Any) -> DatasetChecks:
    """What a worker does about data sets that wait."""
    return DatasetChecks(WorkerSettings(broker_url="redis://none", **settings), folder, Event(), validator)


def upload(content: bytes = CSV) -> UUID:
    workspace_id = workspace()
    file = blobs.write([content])
    with transaction() as session:
        return datasets.add(session, workspace_id, file, Detected("csv", ("ratings", "table")), "").dataset.id


def dataset_of(dataset_id: UUID) -> Dataset:
    with transaction() as session:
        return session.get_one(Dataset, dataset_id)


def take(lease: timedelta = LEASE) -> Check:
    with transaction() as session:
        check = dataset_checks.take_next(session, lease)
    assert check is not None
    return check


def is_ready(dataset: Dataset, tries: int) -> bool:
    return (dataset.state, dataset.status_detail, dataset.rows, dataset.tries) == ("ready", None, 3, tries)


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_whole_report_counts_however_its_process_ends(
    accident: str, stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    dataset_id = upload()
    checks(tmp_path, stand_in(DIES_AFTER_ITS_REPORT.format(accident=accident))).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def test_a_whole_report_counts_though_its_process_never_ends(
    stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    dataset_id = upload()
    checks(tmp_path, stand_in(HANGS_AFTER_ITS_REPORT), dataset_check_seconds=5).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def test_a_validator_that_is_killed_amid_its_work_is_started_again(tmp_path: Path) -> None:
    dataset_id = upload(b"user,item,rating\n" + b"".join(b"%d,1,2\n" % user for user in range(400_000)))
    worker = Thread(target=checks(tmp_path).step)
    worker.start()
    os.kill(wait_until(lambda: child_of(os.getpid(), "worker.datasets.validator") or 0), signal.SIGKILL)
    worker.join()
    dataset = dataset_of(dataset_id)
    assert (dataset.state, dataset.rows, dataset.tries) == ("ready", 400_000, 2)


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_check_that_breaks_down_is_tried_again(
    accident: str, stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    dataset_id = upload()
    script = DIES_AT_FIRST.format(count=str(tmp_path / "count"), times=MAX_BREAKDOWNS - 1, accident=accident)
    checks(tmp_path, stand_in(script)).step()
    assert is_ready(dataset_of(dataset_id), tries=MAX_BREAKDOWNS)


@pytest.mark.parametrize(
    ("accident", "how"),
    [
        ("os.abort()", "by signal 6 (SIGABRT)"),
        ("os._exit(3)", "by exit status 3"),
        ("os._exit(0)", "by output that is no report"),
    ],
)
def test_one_that_always_breaks_down_ends_and_equal_bytes_are_checked_anew(
    accident: str, how: str, stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    dataset_id = upload()
    count = tmp_path / "count"
    checks(tmp_path, stand_in(DIES_AT_FIRST.format(count=str(count), times=100, accident=accident))).step()
    dataset = dataset_of(dataset_id)
    assert (dataset.state, dataset.report, count.stat().st_size) == ("invalid", None, MAX_BREAKDOWNS)
    assert dataset.status_detail is not None
    assert dataset.status_detail.startswith(f"Its check broke down {MAX_BREAKDOWNS} times, the last time {how}: ")
    assert "upload the same file again" in dataset.status_detail
    assert upload() == dataset_id
    anew = dataset_of(dataset_id)
    assert (anew.state, anew.status_detail, anew.checked_at, anew.lease_expires_at) == ("pending", None, None, None)
    checks(tmp_path).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def check_ended_and_forgotten(dataset_id: UUID, detail: str, folder: Path) -> None:
    """The check was tried once, and ended the data set for that reason; the same bytes are then checked anew."""
    dataset = dataset_of(dataset_id)
    assert (dataset.state, dataset.report, dataset.tries) == ("invalid", None, 1)
    assert detail in (dataset.status_detail or "")
    assert upload() == dataset_id
    checks(folder).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def test_a_check_that_took_too_long_is_not_repeated_and_not_remembered(tmp_path: Path) -> None:
    dataset_id = upload()
    checks(tmp_path, dataset_check_seconds=0.01).step()
    check_ended_and_forgotten(dataset_id, "took longer than 0.01 s", tmp_path)


def test_a_check_that_ran_out_of_memory_is_not_repeated_and_not_remembered(
    stand_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    dataset_id = upload()
    checks(tmp_path, stand_in(f"import os\nos._exit({EXIT_OUT_OF_MEMORY})")).step()
    check_ended_and_forgotten(dataset_id, "of memory", tmp_path)


def test_a_worker_that_can_not_keep_the_file_goes_on(tmp_path: Path) -> None:
    dataset_id = upload()
    checks(tmp_path / "gone").step()
    dataset = dataset_of(dataset_id)
    assert (dataset.state, dataset.report) == ("invalid", None)
    assert "can't keep its file or start a process (No such file or directory)" in (dataset.status_detail or "")
    upload()
    checks(tmp_path).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def test_what_a_report_says_is_remembered(tmp_path: Path) -> None:
    wrong = CSV + b"1,2,many\n"
    dataset_id = upload(wrong)
    checks(tmp_path).step()
    before = dataset_of(dataset_id)
    assert (before.state, before.attempt) == ("invalid", 1)
    assert before.report is not None
    assert upload(wrong) == dataset_id
    after = dataset_of(dataset_id)
    assert (after.state, after.attempt, after.report) == ("invalid", 1, before.report)


def test_several_uploads_at_once_begin_one_check(tmp_path: Path) -> None:
    dataset_id = upload()
    checks(tmp_path, dataset_check_seconds=0.01).step()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: upload(), range(8))) == {dataset_id}
    check = take()
    assert (check.tries, dataset_of(dataset_id).attempt) == (1, check.attempt)
    assert upload() == dataset_id, "while it is being checked"
    assert dataset_of(dataset_id).attempt == check.attempt


def test_a_check_of_an_earlier_round_finishes_nothing() -> None:
    dataset_id = upload()
    stale = take(timedelta(0))
    assert end_one_lapsed_lease("data set")
    current = take()
    with transaction() as session:
        assert dataset_checks.finish(session, current, None, "It took too long.")
    upload()
    anew = take()
    assert (stale.tries, current.tries, anew.tries) == (1, 2, 1)
    report = DatasetReport(rows=1)
    for old in (stale, current):
        with transaction() as session:
            assert not dataset_checks.QUEUE.renew(session, old, LEASE)
            assert not dataset_checks.finish(session, old, report, None)
            dataset_checks.give_back(session, old)
    with transaction() as session:
        assert dataset_checks.QUEUE.renew(session, anew, LEASE)
        assert dataset_checks.finish(session, anew, report, None)
    assert dataset_of(dataset_id).state == "ready"


def test_a_check_that_is_lost_with_its_workers_ends_and_is_not_remembered(tmp_path: Path) -> None:
    dataset_id = upload()
    for _ in range(MAX_TRIES):
        take(timedelta(0))
        assert end_one_lapsed_lease("data set")
    dataset = dataset_of(dataset_id)
    assert (dataset.state, dataset.report) == ("invalid", None)
    assert f"interrupted {MAX_TRIES} times" in (dataset.status_detail or "")
    upload()
    checks(tmp_path).step()
    assert is_ready(dataset_of(dataset_id), tries=1)


def test_over_http_an_upload_waits_for_the_new_check_and_a_replay_begins_none(store: str, tmp_path: Path) -> None:
    tenant = new_tenant()
    with serving(store, tmp_path / "log") as api, client(api, tenant) as http:
        key = {"Idempotency-Key": "once"}
        first = http.post("/v1/datasets", content=CSV, headers=key)
        checks(tmp_path, dataset_check_seconds=0.01).step()
        path = first.headers["location"]
        invalid = http.get(path).json()
        assert (invalid["state"], invalid["report"]) == ("invalid", None)
        replayed = http.post("/v1/datasets", content=CSV, headers={**key, "Prefer": "wait=60"})
        assert (replayed.status_code, replayed.headers["idempotency-replayed"]) == (201, "true")
        assert replayed.json() == http.get(path).json() == invalid
        stopping = Event()
        worker = PeriodicTask("data sets", checks(tmp_path).step, 0.05, stopping)
        worker.start()
        anew = http.post("/v1/datasets", content=CSV, headers={"Prefer": "wait=60"})
        stopping.set()
        worker.join()
        assert (anew.status_code, anew.headers["preference-applied"]) == (201, "wait=60")
        ready = anew.json()
        assert (ready["id"], ready["state"], ready["status_detail"]) == (invalid["id"], "ready", None)
        assert ready["report"]["rows"] == 3
        again = http.post("/v1/datasets", content=CSV).json()
        assert again == ready
