"""Both clients against the real API, over a wire that is cut at will."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from amaml_client import (
    ChecksumMismatch,
    Client,
    Conflict,
    DatasetInvalid,
    Event,
    Invalid,
    JobCancelled,
    JobFailed,
    NoInitialization,
    NotFound,
    TimedOut,
    Unauthenticated,
    Unreachable,
    calls,
)
from amaml_client.errors import UnexpectedAnswer
from amaml_client.exchange import PATIENCE
from launcher.ports import HOST, free_port
from tests.client.clients import Clock, Open
from tests.client.conftest import Server
from tests.client.playing import NOBODY, SPEC, checking, diverge, finish, meanwhile
from tests.client.wire import Wire
from tests.support.jobs import tell
from tests.support.waiting import CEILING_SECONDS, wait_until


def test_submit_and_read_back(open_client: Open) -> None:
    client = open_client()
    job = client.submit({**SPEC, "name": "a name", "tags": {"for": "reading"}})
    assert (job.state, job.name, job.tags) == ("queued", "a name", {"for": "reading"})
    assert job.spec["meta"]["iterations"] == job.progress.iterations == 10
    assert client.job(job.id) == job


def test_a_lost_answer_does_not_become_a_second_job(open_client: Open, wire: Wire) -> None:
    wire.cuts = [0, 20]  # nothing of the first answer arrives, half a status line of the second
    job = open_client(wire.url).submit({**SPEC, "name": f"lost {wire.url}"})
    assert wire.connections == 3
    assert [found.id for found in open_client().jobs() if found.name == f"lost {wire.url}"] == [job.id]


def test_the_same_key_is_the_same_job(open_client: Open) -> None:
    client = open_client()
    key = os.urandom(8).hex()
    assert client.submit(SPEC, idempotency_key=key).id == client.submit(SPEC, idempotency_key=key).id
    assert client.submit(SPEC).id != client.submit(SPEC).id
    with pytest.raises(Invalid) as caught:
        client.submit({**SPEC, "name": "other"}, idempotency_key=key)
    assert caught.value.code == "idempotency_mismatch"


def test_lists_go_over_pages(open_client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAGE", 2)
    client = open_client()
    submitted = [client.submit({**SPEC, "method": {"kind": "amaml"}, "name": "paged"}).id for _ in range(5)]
    assert [job.id for job in client.jobs(limit=3)] == submitted[:1:-1]
    assert [job.id for job in client.jobs() if job.name == "paged"][:5] == submitted[::-1]
    client.cancel(submitted[0])
    assert submitted[0] in [job.id for job in client.jobs(state="cancelled")]
    assert submitted[1] not in [job.id for job in client.jobs(state="cancelled")]
    assert client.jobs(family="alpine") == []


def test_refusals_by_kind(open_client: Open) -> None:
    client = open_client()
    with pytest.raises(Unauthenticated) as no_key:
        open_client(key="amaml_nonsense").jobs()
    assert no_key.value.status == 401
    assert no_key.value.request_id
    with pytest.raises(NotFound):
        client.job(NOBODY)
    with pytest.raises(NotFound):
        client.job("../../healthz")
    with pytest.raises(Invalid) as invalid:
        client.submit({**SPEC, "trajectory": {"length": -1.0}, "nonsense": 1})
    assert {error.pointer for error in invalid.value.errors} == {"/trajectory/length", "/nonsense"}
    assert "/trajectory/length: " in str(invalid.value)
    with pytest.raises(Invalid) as parameter:
        client.jobs(state="nonsense")
    assert parameter.value.errors[0].parameter == "state"
    job = client.submit(SPEC)
    diverge(job.id)
    with pytest.raises(Conflict) as conflict:
        client.resume(job.id)
    assert conflict.value.code == "wrong_state"


def test_nobody_there(open_client: Open, clock: Clock) -> None:
    with pytest.raises(Unreachable, match="make up"):
        open_client(f"http://{HOST}:{free_port()}").jobs()
    assert len(clock.pauses) > 3
    assert 2 < sum(clock.pauses) <= PATIENCE


def test_somebody_else_there(open_client: Open, server: Server) -> None:
    client = open_client(f"{server.url}/openapi.json?")
    with pytest.raises((UnexpectedAnswer, NotFound)):
        client.job(NOBODY)


def test_wait_for_a_good_end(open_client: Open, wire: Wire) -> None:
    job = open_client().submit(SPEC)
    with pytest.raises(TimedOut) as caught:
        open_client().wait(job.id, timeout=0.3)
    assert caught.value.waited_for.id == job.id

    def play() -> None:
        wait_until(lambda: wire.connections)
        finish(job.id)

    with meanwhile(play):
        ended = open_client(wire.url).wait(job.id, timeout=CEILING_SECONDS)
    assert ended.succeeded
    assert ended.check() is ended


def test_wait_for_a_bad_end(open_client: Open) -> None:
    client = open_client()
    failed, cancelled = client.submit(SPEC), client.submit(SPEC)
    diverge(failed.id)
    with pytest.raises(JobFailed, match=r"diverged: lower meta\.optimizer\.lr"):
        client.wait(failed.id).check()
    assert client.cancel(cancelled.id).state == "cancelled"
    with pytest.raises(JobCancelled):
        client.wait(cancelled.id).check()


def test_wait_and_stream_outlast_a_restart(open_client: Open, server: Server) -> None:
    reader, waiter = open_client(), open_client()
    job = reader.submit(SPEC)
    events = reader.stream(job.id)
    first = next(events)
    server.api.kill()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(waiter.wait, job.id)
        reading = pool.submit(lambda: [event.seq for event in events])
        server.api.start()  # nobody is there for as long as a Python takes to import the API
        finish(job.id)
        assert waiting.result(CEILING_SECONDS).succeeded
        assert reading.result(CEILING_SECONDS) == [first.seq + 1, first.seq + 2]


def test_each_event_once_and_in_order_over_cuts(open_client: Open, wire: Wire, clock: Clock) -> None:
    client = open_client(wire.url)
    job = open_client().submit(SPEC)
    wire.cuts = [700, 1100, 300, 900]
    events: list[Event] = []

    def have_come(number: int) -> bool:
        return len(events) >= number

    def play() -> None:
        for iteration in range(1, 21):
            wait_until(partial(have_come, iteration - 2))  # so some are on their way at each cut
            tell(job.id, phase="training", iteration=iteration, iterations=20, metrics={"meta_loss": 0.1})
        finish(job.id)

    with meanwhile(play):
        for event in client.stream(job.id):
            events.append(event)  # noqa: PERF402 - one by one, since the other thread looks
    assert wire.connections > len(wire.cuts)
    assert len(clock.pauses) == wire.connections - 1
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["iteration"] for event in events if event.kind == "progress"] == list(range(1, 21))
    assert events[-1].data["state"] == "succeeded"
    assert [event.seq for event in client.stream(job.id, after=21)] == [event.seq for event in events[21:]]


THETA = os.urandom(3 << 20)


@pytest.fixture
def learned(client: Client) -> str:
    """A job whose initialization is THETA."""
    job = client.submit(SPEC)
    finish(job.id, THETA)
    return job.id


def test_download(open_client: Open, learned: str, tmp_path: Path) -> None:
    target = tmp_path / "init.safetensors"
    target.write_bytes(b"something older")
    assert open_client().download(learned, target) == target
    assert target.read_bytes() == THETA
    assert list(tmp_path.iterdir()) == [target]


def test_a_cut_download_goes_on(open_client: Open, learned: str, wire: Wire, tmp_path: Path) -> None:
    # The first connection is for the job's document and the first try; what a cut left is not asked for again.
    wire.cuts = [1 << 20, 1 << 20, 100_000]
    open_client(wire.url).download(learned, tmp_path / "init")
    assert (tmp_path / "init").read_bytes() == THETA
    assert wire.connections == 4


@pytest.mark.usefixtures("clock")
def test_a_later_call_goes_on(open_client: Open, learned: str, wire: Wire, tmp_path: Path) -> None:
    wire.cuts = [1 << 20] + [0] * 50
    with pytest.raises(Unreachable):
        open_client(wire.url).download(learned, tmp_path / "init")
    (part,) = tmp_path.iterdir()
    assert part.name != "init"
    there = part.stat().st_size
    assert 500_000 < there < len(THETA)
    wire.cuts = [0] * wire.connections + [len(THETA) - there + 10_000]  # too few for the whole file again
    open_client(wire.url).download(learned, tmp_path / "init")
    assert (tmp_path / "init").read_bytes() == THETA


def test_wrong_bytes_are_not_kept(open_client: Open, learned: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(THETA).hexdigest()
    part = tmp_path / f".init.{digest[:16]}.part"
    part.write_bytes(bytes(1 << 20))
    with pytest.raises(ChecksumMismatch, match=digest):
        open_client().download(learned, tmp_path / "init")
    assert list(tmp_path.iterdir()) == []
    part.write_bytes(bytes(len(THETA) + 1))  # more than there is: begun anew
    open_client().download(learned, tmp_path / "init")
    assert (tmp_path / "init").read_bytes() == THETA


def test_nothing_to_download(open_client: Open, tmp_path: Path) -> None:
    client = open_client()
    with pytest.raises(NoInitialization, match="queued"):
        client.download(client.submit(SPEC).id, tmp_path / "init")
    assert list(tmp_path.iterdir()) == []


RATINGS = "user_id,item_id,rating\n" + "".join(
    f"{user},{item},{(user + item) % 5}\n" for user in range(9) for item in range(9)
)


def test_datasets(open_client: Open, server: Server, tmp_path: Path) -> None:
    client = open_client()
    file = tmp_path / "ratings.csv"
    file.write_text(RATINGS)
    name = f"ratings of {uuid4()}"
    told: list[int] = []
    dataset = client.upload_dataset(file, name=name, progress=told.append)
    assert told[-1] == len(RATINGS)
    assert dataset.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (dataset.rows, dataset.bytes, dataset.format, dataset.state) == (None, len(RATINGS), "csv", "pending")
    with pytest.raises(TimedOut, match="pending"):
        client.wait_for_dataset(dataset.id, timeout=0.1)
    with checking(server.home):
        dataset = client.wait_for_dataset(dataset.id).check()
        assert (dataset.rows, dataset.tasks, dataset.families) == (81, 9, ["ratings", "table"])
        assert dataset.report is not None
        assert [column.name for column in dataset.report.columns] == ["user_id", "item_id", "rating"]
        file.write_text(RATINGS + f"1,2,three {name}\n")
        bad = client.upload_dataset(file, name=name, wait=True)
    assert (bad.state, bad.version) == ("invalid", 2)
    with pytest.raises(DatasetInvalid, match="Line 83"):
        bad.check()
    assert client.dataset(dataset.id) == dataset
    assert [found.id for found in client.datasets(name=name)] == [bad.id, dataset.id]
    assert [found.id for found in client.datasets(name=name, state="ready", family="table")] == [dataset.id]
    client.delete_dataset(dataset.id)
    with pytest.raises(NotFound):
        client.dataset(dataset.id)
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(Invalid, match="zip"):
        client.upload_dataset(file)


def test_an_upload_whose_answer_is_lost_is_done_once(open_client: Open, wire: Wire, tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text(RATINGS + f"10,10,{uuid4().int % 10**9}\n")
    wire.cuts = [0]
    dataset = open_client(wire.url).upload_dataset(file, name=str(uuid4()))
    assert wire.connections == 2
    assert [found.id for found in open_client().datasets(name=dataset.name)] == [dataset.id]


def test_a_delete_whose_answer_is_lost_is_done(open_client: Open, wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    dataset = open_client().upload_dataset(tmp_path / "ratings.csv")
    wire.cuts = [0]
    client = open_client(wire.url)
    client.delete_dataset(dataset.id)
    assert wire.connections == 2
    with pytest.raises(NotFound):
        client.delete_dataset(dataset.id)


def test_webhooks(open_client: Open) -> None:
    client = open_client()
    made = client.make_webhook(
        "http://127.0.0.1:9009/x", events=["job.failed"], signature="ed25519", description="mine"
    )
    assert (made.events, made.signature, made.description, made.secret) == (["job.failed"], "ed25519", "mine", None)
    assert made.public_key.startswith("whpk_")
    assert client.webhooks(limit=1) == [client.webhook(made.id)]
    assert client.rotate_webhook(made.id, overlap_seconds=0).public_key != made.public_key
    changed = client.change_webhook(made.id, url="http://127.0.0.1:9010/y")
    assert (changed.url, changed.events, changed.enabled) == ("http://127.0.0.1:9010/y", ["job.failed"], True)
    tested = client.test_webhook(made.id)
    assert [found.id for found in client.deliveries(made.id, state="pending")] == [tested.id]
    assert client.change_webhook(made.id, enabled=False).disabled_reason == "asked"
    assert client.delivery(made.id, tested.id).state == "failed"
    with pytest.raises(Conflict, match="enable it"):
        client.redeliver(made.id, tested.id)
    client.delete_webhook(made.id)
    with pytest.raises(NotFound):
        client.webhook(made.id)


def test_a_webhook_whose_answer_is_lost_is_not_made_twice(open_client: Open, wire: Wire) -> None:
    wire.cuts = [0]
    with pytest.raises(Unreachable):
        open_client(wire.url).make_webhook("http://127.0.0.1:9009/lost")
    assert wire.connections == 1


def test_what_specs_may_name(open_client: Open) -> None:
    client = open_client()
    assert {"cosmixture", "alpine", "sinusoid", "ratings"} <= {kind.kind for kind in client.families()}
    assert "mlp" in {kind.kind for kind in client.models()}
    assert "amaml" in {kind.kind for kind in client.methods()}
    assert {"euler", "dopri5"} <= {kind.kind for kind in client.solvers()}
    shots = next(kind for kind in client.families() if kind.kind == "sinusoid").json_schema["properties"]["shots"]
    assert shots["minimum"] == 1


def test_usage(open_client: Open) -> None:
    client = open_client()
    before = client.usage()
    client.submit(SPEC)
    after = client.usage()
    assert after.queued_jobs.used == before.queued_jobs.used + 1
    assert after.queued_jobs.bound == 10_000
    assert after.running_jobs.bound is None
    assert after.compute_seconds.expected > before.compute_seconds.expected


def test_metrics(open_client: Open) -> None:
    client = open_client()
    job = client.submit(SPEC)
    assert client.metrics(job.id) == {}
    with pytest.raises(NotFound):
        client.metrics(NOBODY, name="meta_loss", from_step=1, max_points=10)


def test_the_synchronous_client_is_what_the_asynchronous_one_makes() -> None:
    tool = Path(__file__).parents[2] / "client" / "tools" / "synchronous.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_client_is_light() -> None:
    heavy = {"torch", "numpy", "sqlalchemy", "fastapi", "celery", "amaml", "service", "launcher"}
    code = f"import sys, amaml_client, amaml_client.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
