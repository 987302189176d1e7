"""What becomes of a study: turns of its jobs, its end, cancelling and deleting it over HTTP; the store's own functions play the
worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx2 as httpx
import pytest
from sqlalchemy import func, update

from service.core import blobs
from service.core.database import transaction
from service.jobs.tables import Job
from service.jobs.transitions import FINAL
from service.studies import store as studies
from tests.support.api import SPEC, Tenant, check_problem
from tests.support.jobs import claim, fail, stop, succeed, take
from tests.support.study_requests import advance, cells, finish, held, submit


class TestTurns:
    def test_the_next_job_is_let_in_when_one_ends(self, http: httpx.Client) -> None:
        study = submit(http, concurrency=1)
        assert held(study) == [False, True, True, True]
        first, second, *_ = [one["job_id"] for one in cells(http, study)]
        claim(first)
        advance(study)
        assert held(study) == [False, True, True, True]
        succeed(first, b"theta")
        with transaction() as session:
            assert UUID(study["id"]) in studies.due(session)
        advance(study)
        advance(study)
        assert held(study) == [False, False, True, True]
        job = http.get(f"/v1/jobs/{second}").json()
        assert (job["state"], job["status_reason"], job["status_detail"]) == ("queued", None, None)
        with transaction() as session:
            assert UUID(study["id"]) not in studies.due(session)

    def test_a_paused_job_gives_its_place_away_and_waits_for_it_again(self, http: httpx.Client) -> None:
        study = submit(http, concurrency=1)
        first, second, *_ = [one["job_id"] for one in cells(http, study)]
        http.post(f"/v1/jobs/{first}/pause")
        advance(study)
        assert held(study) == [False, False, True, True]
        resumed = http.post(f"/v1/jobs/{first}/resume").json()
        assert (resumed["state"], resumed["status_reason"]) == ("queued", "study_turn")
        advance(study)
        assert held(study) == [True, False, True, True]
        http.post(f"/v1/jobs/{second}/cancel")
        advance(study)
        assert held(study) == [False, False, True, True]

    def test_two_at_once_never_let_in_too_many(self, http: httpx.Client) -> None:
        study = submit(http, grid={"/runtime/seed": list(range(40))}, concurrency=3)
        ids = [one["job_id"] for one in cells(http, study)]
        for ended in range(0, 36, 3):
            for job_id in ids[ended : ended + 3]:
                http.post(f"/v1/jobs/{job_id}/cancel")
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda _: advance(study), range(6)))
            assert held(study).count(False) == ended + 6

    def test_it_is_finished_when_every_job_has_ended(self, http: httpx.Client) -> None:
        study = submit(http, grid={"/runtime/seed": [0, 1]})
        first, second = [one["job_id"] for one in cells(http, study)]
        finish(first, [1.0, 2.0])
        claim(second)
        fail(second, "diverged", "It diverged.")
        advance(study)
        ended = http.get(study["links"]["self"]).json()
        assert (ended["state"], ended["states"]) == ("finished", {"succeeded": 1, "failed": 1})
        assert ended["ended_at"] is not None
        check_problem(http.post(f"{study['links']['self']}/cancel"), 409, "wrong_state")


class TestCancelling:
    def test_all_that_has_not_ended_is_cancelled(self, http: httpx.Client) -> None:
        study = submit(http)
        path = study["links"]["self"]
        done, running, *_ = [one["job_id"] for one in cells(http, study)]
        finish(done, [1.0])
        claim(running)
        answer = http.post(f"{path}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
        assert answer.json()["states"] == {"succeeded": 1, "cancelling": 1, "cancelled": 2}
        advance(study)
        assert http.get(path).json()["state"] == "cancelling"
        check_problem(http.delete(path), 409, "wrong_state")
        stop(running)
        advance(study)
        assert http.get(path).json()["state"] == "cancelled"
        assert http.post(f"{path}/cancel").json()["state"] == "cancelled"

    def test_cancelling_amid_claims_and_turns_locks_nobody_out(self, http: httpx.Client, tenant: Tenant) -> None:
        study = submit(http, grid={"/runtime/seed": list(range(60))}, concurrency=8)
        first = update(Job).where(Job.study_id == UUID(study["id"])).values(queued_at=func.to_timestamp(0))
        with transaction() as session:
            session.execute(first)  # claimed before what other tests have left in the queue

        def work(_: int) -> None:
            claimed = take()
            advance(study)
            if claimed is not None:
                stop(claimed.id)

        def cancel(_: int) -> None:
            with transaction() as session:
                studies.cancel(session, tenant.workspace_id, UUID(study["id"]))

        with ThreadPoolExecutor(12) as pool:
            working = [pool.submit(work, number) for number in range(60)]
            cancelling = [pool.submit(cancel, number) for number in range(2)]
            for one in working + cancelling:
                one.result()
        for one in cells(http, study):
            assert one["state"] in {*FINAL, "cancelling"}


class TestDeleting:
    def test_an_ended_study_goes_with_its_jobs(self, http: httpx.Client) -> None:
        study = submit(http, grid={"/runtime/seed": [0, 1]})
        path = study["links"]["self"]
        first, second = [one["job_id"] for one in cells(http, study)]
        check_problem(http.delete(path), 409, "wrong_state")
        finish(first, [1.0])
        http.post(f"/v1/jobs/{second}/cancel")
        refusal = check_problem(http.delete(f"/v1/jobs/{first}"), 409, "in_use")
        assert study["id"] in refusal["detail"]
        with transaction() as session:
            blob_id = session.get_one(Job, UUID(first)).initialization_blob_id
        assert blob_id is not None
        forked = http.post("/v1/jobs", json={**SPEC, "meta": {"iterations": 1, "init_from": {"job": first}}}).json()
        check_problem(http.delete(path), 409, "in_use")
        http.post(f"/v1/jobs/{forked['id']}/cancel")
        assert http.delete(path).status_code == 204
        check_problem(http.get(path), 404, "not_found")
        check_problem(http.get(f"/v1/jobs/{first}"), 404, "not_found")
        with pytest.raises(blobs.BlobNotFound):
            blobs.read(blob_id)


def test_the_store_refuses_a_held_job_without_a_study(http: httpx.Client, tenant: Tenant) -> None:
    job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
    with pytest.raises(Exception, match="held_by_a_study"), transaction() as session:
        session.execute(update(Job).where(Job.id == UUID(job_id)).values(held=True))
