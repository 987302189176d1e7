"""How long users wait, and what idle workers cost: on a separate stack, compared with a minimal Celery task in the same run.

submit → first iteration · cancel → trainer gone · worker killed or stopped → its job goes on elsewhere · submit, list, claim
and the queries of workers with 100 and with 10,000 jobs queued · CPU time of an idle stack.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx2 as httpx
import psycopg
import redis
from celery import Celery
from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from amaml.spec import EvaluationSpec, JobSpec, MetaSpec, MLPSpec, RuntimeSpec, SinusoidSpec
from benchmarks.record import arguments
from service.core import outbox
from service.core.database import engine, transaction
from service.jobs import claims
from service.jobs import store as jobs
from service.jobs.claims import Claimant
from service.jobs.store import Filter
from service.jobs.tables import Job
from service.keys import store as keys
from worker.maintenance import reconciler
from worker.maintenance.reconciler import with_lapsed_leases

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
LEASE_SECONDS = 5
RAW_QUEUE = "raw"
BARS = {"start_p50": 0.15, "cancel_p95": 2.0, "resume_beyond_lease": 3.0, "queue_ratio": 2.0, "idle_reconciler": 0.01}

raw = Celery("raw", broker=os.environ.get("AMAML_BROKER_URL"))
raw.conf.update(task_default_queue=RAW_QUEUE, task_ignore_result=True)


@raw.task(name="note")  # type: ignore[untyped-decorator]
def note(sent: float) -> None:
    """Reports its start, in seconds after it was sent."""
    seconds = time.time() - sent
    with redis.Redis.from_url(os.environ["AMAML_BROKER_URL"]) as client:
        client.rpush("noted", seconds)


class Stack:
    """`amaml up` on a temporary home, and further workers."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._log = home / "benchmark.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        settings = {"AMAML_HOME": str(home), "AMAML_PORT": "0", "AMAML_LEASE_SECONDS": str(LEASE_SECONDS)}
        own = {name: value for name, value in os.environ.items() if not name.startswith("AMAML_")}
        self._start([sys.executable, "-m", "launcher", "up"], {**own, **settings})
        eventually((home / "url").exists, 120)
        self.children: dict[str, int] = {
            each["name"]: each["pid"] for each in json.loads((home / "children.json").read_text())
        }
        environ = Path(f"/proc/{self.children['api']}/environ").read_text().split("\0")
        self.environment = dict(each.partition("=")[::2] for each in environ if "=" in each)
        os.environ["AMAML_DATABASE_URL"] = self.environment["AMAML_DATABASE_URL"]
        headers = {"Authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
        self.http = httpx.Client(base_url=self.environment["AMAML_URL"], headers=headers, timeout=60)
        url = make_url(self.environment["AMAML_DATABASE_URL"]).set(drivername="postgresql")
        self._database = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    def start_celery(self, app: str, *options: str) -> None:
        self._start([sys.executable, "-m", "celery", "-A", app, "worker", *options], self.environment)

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        with self._log.open("ab") as stream:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stream, stderr=stream)
        self._processes.append(process)

    def ask(self, query: str, *parameters: object) -> Any:
        """The first column of the first row; None if there is none."""
        row = self._database.execute(query.encode(), parameters).fetchone()
        return None if row is None else row[0]

    def submit(self, iterations: int) -> UUID:
        answer = self.http.post("/v1/jobs", json=spec(iterations).model_dump(mode="json"))
        answer.raise_for_status()
        return UUID(answer.json()["id"])

    def wait_for_iteration(self, job_id: UUID, attempt: int = 1) -> None:
        query = "SELECT 1 FROM jobs WHERE id = %s AND attempt = %s AND iteration >= 1"
        eventually(lambda: self.ask(query, job_id, attempt) is not None, 120)

    def wait_for_end(self, job_id: UUID) -> None:
        eventually(lambda: self.ask("SELECT ended_at FROM jobs WHERE id = %s", job_id) is not None, 120)

    def wait_for_workers(self, number: int) -> None:
        """Waits until this many workers have reported just now."""
        query = "SELECT count(*) FROM workers WHERE seen_at > now() - interval '3 seconds'"
        eventually(lambda: self.ask(query) == number, 120)

    def trainer_of(self, job_id: UUID) -> int:
        """The process of the job's newest attempt."""
        query = "SELECT trainer_pid FROM attempts WHERE job_id = %s ORDER BY number DESC LIMIT 1"
        pid: int = self.ask(query, job_id)
        return pid

    def stop(self) -> None:
        self.http.close()
        self._database.close()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="amaml-latency-") as folder:
        running = Stack(Path(folder))
        try:
            yield running
        finally:
            running.stop()


def spec(iterations: int) -> JobSpec:
    return JobSpec(
        family=SinusoidSpec(test_tasks=2),
        model=MLPSpec(hidden=[16]),
        meta=MetaSpec(iterations=iterations, tasks_per_batch=2),
        evaluation=EvaluationSpec(every=1_000_000, tasks=2, epochs=5),
        runtime=RuntimeSpec(threads=1, checkpoint_every=20),
    )


def eventually(what: Callable[[], T], seconds: float) -> T:
    """The function's first true value; it is called a thousand times a second."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {seconds} s")
        time.sleep(0.001)
    return value


def summary(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        "best": ordered[0],
        "worst": ordered[-1],
        "repeats": len(ordered),
    }


def start(running: Stack, repeats: int) -> dict[str, Any]:
    """Seconds from the request until the job shows its first iteration; and, in turn, until a minimal Celery task starts."""
    running.start_celery("benchmarks.latency:raw", "--pool=threads", "--concurrency=1", "-Q", RAW_QUEUE)
    ours, theirs = [], []
    with redis.Redis.from_url(running.environment["AMAML_BROKER_URL"], socket_timeout=90) as client:
        raw.conf.broker_url = running.environment["AMAML_BROKER_URL"]
        for _ in range(repeats + 1):
            time.sleep(random.uniform(0.0, 0.5))  # noqa: S311 - beside whatever rhythm the workers have
            began = time.perf_counter()
            job_id = running.submit(30)
            running.wait_for_iteration(job_id)
            ours.append(time.perf_counter() - began)
            running.wait_for_end(job_id)
            note.delay(time.time())
            noted = client.blpop(["noted"], timeout=60)
            theirs.append(float(noted[1]))
    # The first ones are left out, since they include the start of the minimal worker and of our pools of connections.
    return {"submit_to_first_iteration": summary(ours[1:]), "bare_celery_send_to_start": summary(theirs[1:])}


def cancel(running: Stack, repeats: int) -> dict[str, Any]:
    """Seconds from the request to the trainer's end."""
    seconds = []
    for _ in range(repeats):
        job_id = running.submit(1_000_000)
        running.wait_for_iteration(job_id)
        trainer = running.trainer_of(job_id)
        began = time.perf_counter()
        running.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        eventually(lambda pid=trainer: has_ended(pid), 60)
        seconds.append(time.perf_counter() - began)
        running.wait_for_end(job_id)
    return summary(seconds)


def resume(running: Stack, repeats: int) -> dict[str, Any]:
    """Seconds beyond the lease from a worker's end, or stop, to the first iteration of the next attempt on another worker."""
    running.start_celery("worker.main")
    found = {}
    for what, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        seconds = []
        for _ in range(repeats):
            running.wait_for_workers(2)
            job_id = running.submit(1_000_000)
            eventually(lambda job=job_id: running.ask("SELECT 1 FROM checkpoints WHERE job_id = %s", job), 120)
            holder = running.ask(
                "SELECT pid FROM workers JOIN jobs ON worker_id = workers.id WHERE jobs.id = %s", job_id
            )
            os.kill(holder, number)
            began = time.perf_counter()
            running.wait_for_iteration(job_id, attempt=2)
            seconds.append(time.perf_counter() - began - LEASE_SECONDS)
            running.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
            running.wait_for_end(job_id)
            if number == signal.SIGSTOP:
                os.kill(holder, signal.SIGCONT)
            elif holder != running.children["worker"]:  # the launcher restarts its own worker
                running.start_celery("worker.main")
        found[what] = summary(seconds)
    return {"lease_seconds": LEASE_SECONDS, "beyond_lease": found}


def queue(running: Stack, few: int, many: int, repeats: int) -> dict[str, Any]:
    """Seconds for a transaction in a separate store with few, and with many jobs queued."""
    url = make_url(running.environment["AMAML_DATABASE_URL"])
    running.ask("SELECT 1")
    with psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    ) as own:
        own.execute("CREATE DATABASE queue")
    environment = {**running.environment, "AMAML_DATABASE_URL": url.set(database="queue").render_as_string(False)}
    migrate = [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"]
    subprocess.run(migrate, env=environment, check=True, capture_output=True)
    os.environ["AMAML_DATABASE_URL"] = environment["AMAML_DATABASE_URL"]
    with transaction() as session:
        workspace = keys.ensure_workspace(session, "queue")
        session.execute(text("""UPDATE workspaces SET quotas = '{"queued_jobs": 1000000}'"""))
    costs = {}
    for number in (few, many):
        fill(workspace, number)
        costs[number] = {name: median(action, repeats) for name, action in actions(workspace).items()}
    engine().dispose()
    os.environ["AMAML_DATABASE_URL"] = running.environment["AMAML_DATABASE_URL"]
    ratios = {name: costs[many][name] / costs[few][name] for name in costs[few]}
    return {"queued": {str(number): cost for number, cost in costs.items()}, "ratio": ratios}


def fill(workspace: UUID, number: int) -> None:
    """Queues jobs until there are `count`."""
    with transaction() as session:
        first = jobs.submit(session, workspace, spec(10))
        columns = [column.name for column in Job.__table__.columns if column.name != "id"]
        names = ", ".join(columns)
        have = session.scalars(select(func.count()).select_from(Job).where(Job.state == "queued")).one()
        session.execute(
            text(f"INSERT INTO jobs ({names}) SELECT {names} FROM jobs, generate_series(1, :n) WHERE id = :id"),  # noqa: S608 - names of our own columns
            {"n": number - have, "id": first.id},
        )
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))


def actions(workspace: UUID) -> dict[str, Callable[[], object]]:
    """The calls that are timed, each of which is one transaction."""
    worker = Claimant(id=uuid4(), host="here", devices=["cpu"], threads=1, versions={}, trainer_pid=1)

    def claim(session: Session) -> None:
        assert claims.take_next(session, worker, timedelta(minutes=5)) is not None

    def alone(action: Callable[[Session], object]) -> Callable[[], object]:
        def act() -> None:
            with transaction() as session:
                action(session)

        return act

    return {
        "submit": alone(lambda session: jobs.submit(session, workspace, spec(10))),
        "list": alone(lambda session: jobs.page(session, workspace, Filter(state=["queued"]), None, 50)),
        "list_all": alone(lambda session: jobs.page(session, workspace, Filter(), None, 50)),
        "claim": alone(claim),
        "look_for_lapsed": alone(with_lapsed_leases),
        "look_for_overdue": alone(lambda session: claims.some_wait(session, timedelta(0), ["auto", "cpu"])),
        "publish": alone(lambda session: outbox.take_unsent(session, 10)),
    }


def median(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def idle(running: Stack, seconds: float) -> dict[str, Any]:
    """The cores that each process of the stack uses while it is idle."""
    processes = dict(running.children)
    for folder in Path("/proc").glob("[0-9]*"):
        if parent(int(folder.name)) == running.children["worker"]:
            processes["trainer"] = int(folder.name)
    time.sleep(min(seconds, 10.0))
    before, began = {name: cpu_seconds(pid) for name, pid in processes.items()}, time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - began
    cores = {name: (cpu_seconds(pid) - before[name]) / passed for name, pid in processes.items()}
    return {"seconds": passed, "cores": cores, "worker_with_reconciler_and_trainer": cores["worker"] + cores["trainer"],
            "reconciler": reconciler_alone(running, seconds)}  # fmt: skip


def reconciler_alone(running: Stack, seconds: float) -> float:
    """The cores that the reconciler's rounds use, without PostgreSQL's part: they run here, in place of the leading worker and as
    often."""
    leader = running.ask("SELECT holder FROM leaderships WHERE duty = %s", reconciler.ROLE)
    own = reconciler.Reconciler(leader)
    own.round()  # connects, and does the clean-up of once a minute
    began, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        time.sleep(reconciler.SECONDS)
        own.round()
    return (time.thread_time() - used) / (time.perf_counter() - began)


def cpu_seconds(pid: int) -> float:
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int | None:
    fields = stat(pid)
    return int(fields[1]) if fields else None


def has_ended(pid: int) -> bool:
    fields = stat(pid)
    return not fields or fields[0] == "Z"


def stat(pid: int) -> list[str]:
    """What follows the name in the process's stat file; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def main() -> None:
    run = arguments("latency")
    with stack() as running:
        results: dict[str, Any] = {"idle": idle(running, 1 if run.quick else 60)}
        results |= start(running, 2 if run.quick else 60)
        results["cancel_to_trainer_gone"] = cancel(running, 1 if run.quick else 20)
        results["queue"] = queue(running, 20, 200, 5) if run.quick else queue(running, 100, 10_000, 50)
        results["resume_elsewhere"] = resume(running, 1 if run.quick else 5)
    results["bars"] = {
        "start_p50": results["submit_to_first_iteration"]["p50"] <= BARS["start_p50"],
        "cancel_p95": results["cancel_to_trainer_gone"]["p95"] <= BARS["cancel_p95"],
        "resume_beyond_lease": all(
            each["worst"] <= BARS["resume_beyond_lease"]
            for each in results["resume_elsewhere"]["beyond_lease"].values()
        ),
        "queue_ratio": max(results["queue"]["ratio"].values()) <= BARS["queue_ratio"],
        "idle_reconciler": results["idle"]["reconciler"] <= BARS["idle_reconciler"],
    }
    run.write({**results, "bounds": BARS})
    print(json.dumps(results["bars"]))


if __name__ == "__main__":
    main()
