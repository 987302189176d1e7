"""`python -m tests.faults.soak --seconds N`: jobs over HTTP on three workers, and one accident after another.

One of the workers has a clock that is off by minutes. Ends by itself: after N seconds the accidents stop, every job is
waited for, the rows are audited, and nothing is left running. Prints what happened as JSON. Exit status 0 only if no job was
lost, ended twice or ended in other bits than an undisturbed one, and nothing outlived what had started it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
from sqlalchemy import func, select

from service.core.database import engine, transaction
from service.jobs.tables import Attempt, Checkpoint, Event, Job, Metric
from service.jobs.transitions import FINAL
from tests.faults.site import LEASE_SECONDS, MORE_WORKERS, Site, seen
from tests.support.audit import violations
from tests.support.jobs import result_of, spec

SEEDS = 4
"""Different jobs: all of one seed must end in the same bits."""
ITERATIONS = 30
WAITING = 10
"""Jobs that are kept unended."""
ASKED = 0.1
"""Share of jobs that their user cancels, and as many that are paused and resumed."""
DRAIN_SECONDS = 240.0
SECONDS_BETWEEN_ACCIDENTS = (0.4, 2.0)
SECONDS_BETWEEN_ENDS_OF_ALL = 90.0
"""The launcher is killed, and with it PostgreSQL, Valkey, API and worker; everything is started again on the same home."""


AUDITED = (Job, Attempt, Event, Metric, Checkpoint)


class Users(Thread):
    """Submit jobs over HTTP, cancel and pause some, until they `leave`; then see all of them to their end.

    What the API may have lost amid an answer is asked for again.
    """

    def __init__(self, url: str, key: str, random: random.Random) -> None:
        super().__init__(name="users", daemon=True)
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=10)
        self._random = random
        self.leave = Flag()
        self.accepted: dict[UUID, int] = {}
        """Job → seed, of those that the API has answered for."""
        self.cancelled: set[UUID] = set()
        self._later: list[Thread] = []

    def run(self) -> None:
        while not self.leave.is_set():
            if len(self.unended()) < WAITING:
                job_id = self.submit(self._random.randrange(SEEDS))
                if self._random.random() < ASKED:
                    self.cancelled.add(job_id)
                    self._ask_later(job_id, "cancel")
                elif self._random.random() < ASKED:
                    self._ask_later(job_id, "pause")
            self.leave.wait(0.1)
        while unended := self.unended():
            self._resume_paused(unended)
            time.sleep(0.5)
        for thread in self._later:
            thread.join()
        self._client.close()

    def submit(self, seed: int) -> UUID:
        body = spec(ITERATIONS, seed=seed, max_attempts=100).model_dump(mode="json")
        headers = {"Idempotency-Key": str(uuid4())}
        answer = self._insist(lambda: self._client.post("/v1/jobs", json=body, headers=headers))
        assert answer.status_code == 201, answer.text
        job_id = UUID(answer.json()["id"])
        self.accepted[job_id] = seed
        return job_id

    def unended(self) -> list[dict[str, Any]]:
        states = [("state", state) for state in ("queued", "running", "pausing", "paused", "cancelling")]
        page = self._insist(lambda: self._client.get("/v1/jobs", params=[*states, ("limit", "100")]))
        return list(page.json()["data"])

    def _resume_paused(self, unended: list[dict[str, Any]]) -> None:
        for job in unended:
            if job["state"] == "paused":
                self._insist(lambda path=f"/v1/jobs/{job['id']}/resume": self._client.post(path))

    def _ask_later(self, job_id: UUID, what: str) -> None:
        def ask() -> None:
            time.sleep(2 * self._random.random())
            self._insist(lambda: self._client.post(f"/v1/jobs/{job_id}/{what}"))

        self._later.append(Thread(target=ask, daemon=True))
        self._later[-1].start()

    def _insist(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer that isn't an outage."""
        while True:
            try:
                answer = call()
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
            time.sleep(0.2)


class Accidents:
    """One at a time, drawn at random; only those that were seen to happen are counted."""

    def __init__(self, site: Site, random: random.Random) -> None:
        self._site, self._random = site, random
        self._frozen: list[tuple[float, int]] = []
        self._next_end_of_all = time.monotonic() + SECONDS_BETWEEN_ENDS_OF_ALL / 2
        self.seen: Counter[str] = Counter()
        self._kinds: dict[str, tuple[int, Callable[[], bool]]] = {
            "trainer killed": (34, self._kill_trainer),
            "worker killed": (7, self._kill_worker),
            "worker stopped past its lease": (9, self._freeze),
            "connections to Postgres cut": (14, site.cut_connections),
            "broker flushed": (12, site.flush_broker),
            "wake-ups repeated": (10, site.repeat_messages),
            "API killed": (4, lambda: site.kill("api")),
            "broker killed": (3, lambda: site.kill("valkey")),
            "Postgres restarted": (1, lambda: site.restart("postgres")),
            "Postgres killed": (1, lambda: site.kill("postgres")),
        }

    def one(self) -> None:
        if time.monotonic() >= self._next_end_of_all:
            self.thaw(all_of_them=True)
            self.seen["launcher killed with all its children"] += self._site.kill_launcher()
            self._next_end_of_all = time.monotonic() + SECONDS_BETWEEN_ENDS_OF_ALL
            return
        names = list(self._kinds)
        for _ in range(4):  # what finds nothing to hurt makes room for another
            name = self._random.choices(names, [self._kinds[each][0] for each in names])[0]
            if self._kinds[name][1]():
                self.seen[name] += 1
                return

    def thaw(self, *, all_of_them: bool = False) -> None:
        """Lets those go on that were stopped for long enough."""
        now = time.monotonic()
        due = [frozen for frozen in self._frozen if all_of_them or frozen[0] <= now]
        for frozen in due:
            self._site.thaw(frozen[1])
            self._frozen.remove(frozen)

    def _kill_trainer(self) -> bool:
        trainers = self._site.busy_trainers()
        return bool(trainers) and self._site.kill_pid(self._random.choice(trainers))

    def _kill_worker(self) -> bool:
        workers = self._site.workers
        return bool(workers) and self._site.kill_pid(self._random.choice(workers))

    def _freeze(self) -> bool:
        workers = self._site.workers
        if self._frozen or not workers:  # not all workers at once
            return False
        pid = self._random.choice(workers)
        if not self._site.freeze(pid):
            return False
        self._frozen.append((time.monotonic() + 1.5 * LEASE_SECONDS, pid))
        return True


def soak(seconds: float, seed: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Figures, and a sentence for every promise that was broken."""
    chance = random.Random(seed)  # noqa: S311 - accidents needn't be unguessable
    site = Site(folder)
    try:
        site.start()
        users, accidents = Users(site.url, site.key, chance), Accidents(site, chance)
        first = [users.submit(each) for each in range(SEEDS)]
        if not seen(lambda: ended(first) == SEEDS, DRAIN_SECONDS, 0.2):
            return {}, ["the undisturbed jobs didn't end"]
        bits = {users.accepted[job_id]: result_of(job_id)["tensors_sha256"] for job_id in first}
        clock_off = round(site.clock_off())
        users.start()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            accidents.one()
            accidents.thaw()
            until = time.monotonic() + chance.uniform(*SECONDS_BETWEEN_ACCIDENTS)
            while time.monotonic() < until:
                site.keep_alive()
                time.sleep(0.1)
        assert users.is_alive(), "the users' thread has died; its error stands above"
        users.leave.set()
        accidents.thaw(all_of_them=True)

        def all_ended() -> bool:
            site.keep_alive()
            return not users.is_alive()

        in_time = seen(all_ended, DRAIN_SECONDS, 0.1)
        drained = time.monotonic() - began - seconds
        broken = against(users, bits)  # before the transaction, which would idle meanwhile for longer than it may
        with transaction() as session:
            broken = [*violations(session), *broken]
            crashes = dict(session.execute(select(Attempt.reason, func.count()).group_by(Attempt.reason)).all())
            states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
            rows = {table.__tablename__: session.scalar(select(func.count()).select_from(table)) for table in AUDITED}
        engine().dispose()
        figures = {
            "seconds": round(seconds), "drained_in_seconds": round(drained, 1), "seed": seed,
            "workers": 1 + MORE_WORKERS, "clock_of_one_off_by_seconds": clock_off, "rows_audited": rows,
            "jobs": len(users.accepted), "states": states, "attempts_by_end": crashes,
            "faults": sum(accidents.seen.values()), "faults_seen": dict(accidents.seen),
            "stale_attempts_refused": site.log_file.read_text().count("is over: another may have taken the job"),
        }  # fmt: skip
        broken = broken if in_time else ["some jobs never ended", *broken]
    finally:
        site.stop()
    return figures, broken + site.outlived()


def ended(job_ids: list[UUID]) -> int:
    with transaction() as session:
        return session.scalars(
            select(func.count()).select_from(Job).where(Job.id.in_(job_ids), Job.state.in_(FINAL))
        ).one()


def against(users: Users, bits: dict[int, str]) -> list[str]:
    """What the API's answers promised and the rows don't keep."""
    broken = []
    with transaction() as session:
        states = {row.id: row.state for row in session.execute(select(Job.id, Job.state))}
    for job_id, seed in users.accepted.items():
        state = states.pop(job_id, None)
        if state is None:
            broken.append(f"job {job_id} was accepted and is lost")
        elif state == "succeeded" and result_of(job_id)["tensors_sha256"] != bits[seed]:
            broken.append(f"job {job_id} ended in other bits than an undisturbed one")
        elif state == "failed" or (state == "cancelled" and job_id not in users.cancelled):
            broken.append(f"job {job_id} ended as {state}")
    return broken + [f"job {job_id} was never accepted, or submitted twice" for job_id in states]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="amaml-soak-"))
    figures, broken = soak(arguments.seconds, arguments.seed, folder)
    print(json.dumps({**figures, "broken": broken}, indent=1))
    if broken:
        sys.exit(f"{len(broken)} promises were broken; the log is {folder / 'log'}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
