"""Studies over HTTP: submit, look, cancel, delete, report; the worker is played by the store's own functions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session

from service.core import blobs
from service.core.database import engine, transaction
from service.jobs import progress
from service.jobs.tables import Job
from service.jobs.transitions import FINAL
from service.studies import store as studies
from tests.support.api import JSON, SPEC, Tenant, check_problem
from tests.support.jobs import claim, fail, stop, succeed, take

GRID = {"/method/kind": ["amaml", "reptile"], "/runtime/seed": [0, 1]}


def submit(http: httpx.Client, base: Any = SPEC, grid: Any = GRID, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/studies", json={"name": "methods", "base": base, "grid": grid, **changes})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def refused(http: httpx.Client, base: Any = SPEC, grid: Any = GRID, **changes: Any) -> dict[str, str]:
    answer = http.post("/v1/studies", json={"base": base, "grid": grid, **changes})
    assert http.get("/v1/studies").json()["data"] == []
    assert http.get("/v1/jobs").json()["data"] == []
    return {error["pointer"]: error["detail"] for error in check_problem(answer, 422, "invalid")["errors"]}


def cells(http: httpx.Client, study: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(study["links"]["self"]).json()["jobs"]
    return found


def advance(study: dict[str, Any]) -> None:
    with transaction() as session:
        studies.advance(session, UUID(study["id"]))


def held(study: dict[str, Any]) -> list[bool]:
    """In the grid's order."""
    with transaction() as session:
        query = select(Job.held).where(Job.study_id == UUID(study["id"])).order_by(Job.cell_number)
        return list(session.scalars(query))


def finish(job_id: str, scores: list[float]) -> None:
    """What a worker does for a job from its claim to its end."""
    claim(job_id)
    evaluation = {
        "step": 3, "metric": "nrmse", "higher_is_better": False, "scores": {"tuned": scores, "flow": scores},
        "curve": {"epochs": [0, 10], "mean": [1.0, 0.5], "error": [0.1, float("nan")]}, "along_flow": None,
    }  # fmt: skip
    with transaction() as session:
        job = session.get_one(Job, UUID(job_id), with_for_update=True)
        progress.add_evaluations(session, job, [evaluation])
        progress.add_metrics(session, job, {"seconds": [(1, 0.5), (2, 0.1), (3, 0.2)], "memory_bytes": [(1, 2e8)]})
    succeed(job_id, b"theta")


class TestSubmitting:
    def test_every_combination_becomes_a_job(self, http: httpx.Client) -> None:
        study = submit(http, concurrency=3)
        assert (study["state"], study["cells"], study["states"]) == ("running", 4, {"queued": 4})
        assert (study["base"], study["grid"], study["concurrency"]) == (SPEC, GRID, 3)
        found = cells(http, study)
        assert [list(one["cell"].values()) for one in found] == [
            ["amaml", 0], ["amaml", 1], ["reptile", 0], ["reptile", 1],
        ]  # fmt: skip
        for one in found:
            job = http.get(f"/v1/jobs/{one['job_id']}").json()
            assert (job["study_id"], job["cell"]) == (study["id"], one["cell"])
            assert [job["spec"]["method"]["kind"], job["spec"]["runtime"]["seed"]] == list(one["cell"].values())
            assert job["spec"]["meta"]["iterations"] == 3
        assert job["name"] == "methods: reptile, seed 1"
        assert [one["status_reason"] for one in found] == [None, None, None, "study_turn"]
        listed = http.get(study["links"]["jobs"]).json()["data"]
        assert {one["id"] for one in listed} == {one["job_id"] for one in found}

    def test_a_value_may_be_a_whole_section_and_sections_left_out_are_made(self, http: httpx.Client) -> None:
        sections = [{"kind": "amaml", "proximal": 0.5}, {"kind": "maml", "steps": 4}]
        base = {"meta": {"iterations": 3}, "name": "mine", "model": {"kind": "mlp", "hidden": [8, 8]}}
        grid = {"/method": sections, "/family": [{"kind": "sinusoid"}], "/model/hidden/1": [4], "/runtime/seed": [7]}
        found = cells(http, submit(http, base, grid))
        specs = [http.get(f"/v1/jobs/{one['job_id']}").json()["spec"] for one in found]
        assert [spec["method"]["kind"] for spec in specs] == ["amaml", "maml"]
        assert specs[0]["method"]["proximal"] == 0.5
        assert specs[1]["solver"]["kind"] == "euler"
        assert [spec["model"]["hidden"] for spec in specs] == [[8, 4], [8, 4]]
        assert {spec["name"] for spec in specs} == {"mine"}

    def test_without_method_and_meta_every_cell_is_trained_by_the_default_preset(self, http: httpx.Client) -> None:
        grid = {"/method/kind": ["amaml", "reptile"], "/meta/tasks_per_batch": [5, 7]}
        study = submit(http, base={"family": {"kind": "cosmixture"}}, grid=grid)
        found = [http.get(f"/v1/jobs/{cell['job_id']}").json()["spec"] for cell in cells(http, study)]
        assert [spec["method"]["kind"] for spec in found] == ["amaml", "amaml", "reptile", "reptile"]
        assert [spec["meta"]["tasks_per_batch"] for spec in found] == [5, 7, 5, 7]
        assert {spec["preset"] for spec in found} == {"default"}
        for part in ("clip", "optimizer"):
            assert all(spec["meta"][part] == found[0]["meta"][part] is not None for spec in found)
        assert found[0]["meta"]["iterations"] < found[2]["meta"]["iterations"]
        own = submit(http, base={"family": {"kind": "cosmixture"}, "preset": None}, grid={"/method/kind": ["reptile"]})
        spec = http.get(f"/v1/jobs/{cells(http, own)[0]['job_id']}").json()["spec"]
        assert (spec["preset"], spec["meta"]["clip"]) == (None, None)

    def test_an_invalid_cell_is_named_with_its_pointer(self, http: httpx.Client) -> None:
        grid = {"/method/kind": ["amaml", "nonesuch"], "/trajectory/length": [1.0, -1.0]}
        errors = refused(http, grid=grid)
        assert set(errors) == {"/grid/~1method~1kind/1", "/grid/~1trajectory~1length/1"}
        assert "'nonesuch' is none that this server knows" in errors["/grid/~1method~1kind/1"]
        assert "(cell nonesuch, length 1.0 and 1 more)" in errors["/grid/~1method~1kind/1"]
        assert "-1.0 is too small" in errors["/grid/~1trajectory~1length/1"]

    def test_what_is_wrong_in_the_base_points_there(self, http: httpx.Client) -> None:
        errors = refused(http, {**SPEC, "meta": {"iterations": 0}})
        assert list(errors) == ["/base/meta/iterations"]
        assert errors["/base/meta/iterations"].endswith("(cell amaml, seed 0 and 3 more)")

    def test_a_rule_between_axis_and_base_names_the_cell(self, http: httpx.Client) -> None:
        base = {**SPEC, "solver": {"kind": "dopri5"}}
        errors = refused(http, base, {"/method/kind": ["amaml", "maml"]})
        assert list(errors) == ["/base/solver/kind"]
        assert errors["/base/solver/kind"].endswith("(cell maml)")

    @pytest.mark.parametrize(
        ("axis", "part"),
        [
            ("/nonesuch", "no such field"), ("/methd/kind", "no such field"), ("/runtime/seeds", "no such field"),
            ("/meta/iterations/x", "no object at /meta/iterations"), ("/family/kind/x/y", "no object"),
            ("method/kind", "no JSON Pointer"), ("", "no JSON Pointer"), ("/", "no JSON Pointer"),
            ("/a~2b", "no JSON Pointer"), ("/model/hidden/x", "no element"), ("/model/hidden/9", "no element"),
        ],
    )  # fmt: skip
    def test_unknown_pointers_are_refused(self, http: httpx.Client, axis: str, part: str) -> None:
        base = {**SPEC, "model": {"kind": "mlp", "hidden": [8]}}
        ((pointer, detail),) = refused(http, base, {axis: [1]}).items()
        assert pointer.startswith("/grid/" + axis.replace("~", "~0").replace("/", "~1"))
        assert part in detail

    def test_bounds(self, http: httpx.Client) -> None:
        errors = refused(http, grid={"/runtime/seed": list(range(26)), "/meta/iterations": list(range(1, 21))})
        assert "520 cells are too many: at most 500" in errors["/grid"]
        assert "too short" in refused(http, grid={"/runtime/seed": []})["/grid/~1runtime~1seed"]
        assert "/grid" in refused(http, grid={})
        assert "twice" in refused(http, grid={"/runtime/seed": [1, 1]})["/grid/~1runtime~1seed/1"]
        assert (
            "lies within"
            in refused(http, grid={"/method": [{"kind": "amaml"}], "/method/kind": ["maml"]})["/grid/~1method~1kind"]
        )
        assert "/concurrency" in refused(http, concurrency=0)
        assert "/concurrency" in refused(http, concurrency=65)
        assert "/base" in refused(http, base=[])
        assert "/nonsense" in refused(http, nonsense=1)

    def test_the_largest_study_is_taken(self, http: httpx.Client) -> None:
        study = submit(http, grid={"/runtime/seed": list(range(500))}, concurrency=64)
        assert study["cells"] == 500
        assert sum(held(study)) == 436
        assert http.post(f"{study['links']['self']}/cancel").json()["state"] == "cancelled"

    def test_a_data_set_that_is_not_there_is_named(self, http: httpx.Client) -> None:
        family = {"kind": "ratings", "dataset": str(uuid4())}
        errors = refused(http, grid={"/family": [{"kind": "sinusoid"}, family], "/runtime/seed": [0, 1]})
        ((pointer, detail),) = errors.items()
        assert pointer == "/grid/~1family/1/dataset"
        assert "no data set of this workspace" in detail

    def test_an_idempotency_key_makes_one_study(self, http: httpx.Client) -> None:
        body = {"base": SPEC, "grid": GRID}
        headers = {"Idempotency-Key": str(uuid4())}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/studies", json=body, headers=headers), range(4)))
        assert [answer.status_code for answer in answers] == [201] * 4
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 3
        other = http.post("/v1/studies", json={**body, "concurrency": 1}, headers=headers)
        check_problem(other, 422, "idempotency_mismatch")
        check_problem(http.post("/v1/jobs", json=SPEC, headers=headers), 422, "idempotency_mismatch")
        assert len(http.get("/v1/studies").json()["data"]) == 1


class TestLooking:
    def test_polling_costs_a_304_until_a_job_changes(self, http: httpx.Client) -> None:
        study = submit(http, concurrency=4)
        path = study["links"]["self"]
        for url in (path, f"{path}/report"):
            first = http.get(url)
            again = http.get(url, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        claim(cells(http, study)[2]["job_id"])
        changed = http.get(path, headers={"If-None-Match": http.get(path).headers["etag"] + "x"})
        assert changed.json()["states"] == {"queued": 3, "running": 1}
        assert http.get(url, headers={"If-None-Match": first.headers["etag"]}).status_code == 200

    def test_a_study_is_told_under_its_own_version(self, http: httpx.Client, tenant: Tenant) -> None:
        """It is cancelled between the statements of a look: what the look tells, and the version under which it does, are of one
        moment, or whoever asks for changes of that version would never hear of the end."""
        study_id = UUID(submit(http)["id"])
        sent: list[str] = []

        def cancel_after_the_first(_: Any, __: Any, statement: str, *___: Any) -> None:
            sent.append(statement)
            if len(sent) == 2:
                with ThreadPoolExecutor(1) as another:
                    another.submit(cancel).result()

        def cancel() -> None:
            with transaction() as session:
                assert studies.cancel(session, tenant.workspace_id, study_id)

        look = engine().execution_options()
        event.listen(look, "before_cursor_execute", cancel_after_the_first)
        with Session(look) as session:
            found = studies.find(session, tenant.workspace_id, study_id)
        assert len(sent) >= 2
        with transaction() as session:
            now = studies.find(session, tenant.workspace_id, study_id)
        assert found is not None
        assert now is not None
        assert (found.version == now.version) == (found.study.state == now.study.state)

    def test_lists_are_newest_first_in_pages(self, http: httpx.Client) -> None:
        made = [submit(http)["id"] for _ in range(3)]
        page = http.get("/v1/studies", params={"limit": 2}).json()
        rest = http.get("/v1/studies", params={"limit": 2, "cursor": page["next_cursor"]}).json()
        assert [one["id"] for one in page["data"] + rest["data"]] == made[::-1]
        assert rest["next_cursor"] is None

    @pytest.mark.parametrize("part", ["", "/report"])
    def test_unknown_ids_are_not_found(self, http: httpx.Client, part: str) -> None:
        for study_id in (str(uuid4()), "01a2054d-a188-75bf-b336-be8cb1ebcb98", "x", "%00"):
            check_problem(http.get(f"/v1/studies/{study_id}{part}"), 404, "not_found")


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


@pytest.mark.parametrize("number", [b"1e999", b"-1E+400", b"1" + 220 * b"0" + b"e99", b"1" + 309 * b"0" + b".0"])
def test_a_base_that_no_database_can_hold_is_refused(http: httpx.Client, number: bytes) -> None:
    body = b'{"base": {"family": {"kind": "sinusoid"}, "trajectory": {"length": %s}}, "grid": {"/trajectory/length": [1, 2]}}'
    body %= number
    answer = http.post("/v1/studies", content=body, headers=JSON)
    (error,) = check_problem(answer, 422, "invalid")["errors"]
    assert error["pointer"] == "/base/trajectory/length"
    assert "finite" in error["detail"]


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


class TestReport:
    @pytest.fixture
    def study(self, http: httpx.Client) -> dict[str, Any]:
        """amaml with both seeds, reptile with one that succeeded and one that failed."""
        study = submit(http, concurrency=4)
        ids = [one["job_id"] for one in cells(http, study)]
        for job_id, scores in zip(ids, ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [1.5, 2.5, 4.0]), strict=False):
            finish(job_id, scores)
        claim(ids[3])
        fail(ids[3], "diverged", "It diverged.")
        return study

    def test_numbers(self, http: httpx.Client, study: dict[str, Any]) -> None:
        (block,) = http.get(study["links"]["report"]).json()["blocks"]
        amaml, reptile = block["rows"]
        assert (amaml["score"], amaml["best"]) == ({"mean": 2.0, "error": 0.0, "over": "seeds"}, True)
        assert reptile["score"]["mean"] == pytest.approx(8 / 3)
        assert (reptile["scored"], reptile["pairs"], reptile["score"]["over"]) == (1, 3, "tasks")
        assert reptile["difference"] == pytest.approx(2 / 3)
        assert reptile["p_value"] == pytest.approx(0.057190958417936755)  # scipy.stats.ttest_rel
        assert (amaml["seconds"], amaml["memory_bytes"]) == (0.2, 2e8)
        assert reptile["curve"] == {"epochs": [0, 10], "mean": [1.0, 0.5], "error": [0.1, None]}

    def test_a_failed_cell_is_shown(self, http: httpx.Client, study: dict[str, Any]) -> None:
        (trouble,) = http.get(study["links"]["report"]).json()["without_result"]
        assert (trouble["state"], trouble["status_reason"]) == ("failed", "diverged")
        for kind in ("csv", "md", "html"):
            assert "It diverged." in http.get(study["links"]["report"], params={"format": kind}).text

    @pytest.mark.parametrize(
        ("accept", "format_", "media_type"),
        [
            ("*/*", None, "application/json"), ("text/csv", None, "text/csv; charset=utf-8"),
            ("text/markdown", None, "text/markdown; charset=utf-8"),
            ("text/html,application/xhtml+xml,*/*;q=0.8", None, "text/html; charset=utf-8"),
            ("text/csv;q=0.5, text/html;q=0.9", None, "text/html; charset=utf-8"),
            ("text/html;q=zero, image/png", None, "application/json"),
            ("text/html", "md", "text/markdown; charset=utf-8"), ("text/html", "json", "application/json"),
        ],
    )  # fmt: skip
    def test_formats(
        self, http: httpx.Client, study: dict[str, Any], accept: str, format_: str | None, media_type: str
    ) -> None:
        params = {"format": format_} if format_ else {}
        answer = http.get(study["links"]["report"], params=params, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        if "html" in media_type:
            assert "default-src 'none'" in answer.headers["content-security-policy"]

    def test_bad_parameters_are_named(self, http: httpx.Client, study: dict[str, Any]) -> None:
        for name, value in (("format", "pdf"), ("score", "../x")):
            answer = http.get(study["links"]["report"], params={name: value})
            (error,) = check_problem(answer, 422, "invalid")["errors"]
            assert error["parameter"] == name


def test_evaluations_are_shown_task_by_task(http: httpx.Client) -> None:
    study = submit(http)
    job_id = cells(http, study)[0]["job_id"]
    path = f"/v1/jobs/{job_id}/evaluations"
    assert http.get(path).json()["data"] == []
    claim(job_id)
    one = {
        "metric": "nrmse", "higher_is_better": False, "scores": {"tuned": [0.5, float("inf")]},
        "curve": {"epochs": [0.0], "mean": [1.0], "error": [0.1]},
        "along_flow": {"times": [0.0, 1.0], "mean": [1.0, float("nan")], "error": [0.0, 0.0], "trouble": "too stiff"},
    }  # fmt: skip
    with transaction() as session:
        job = session.get_one(Job, UUID(job_id), with_for_update=True)
        progress.add_evaluations(session, job, [{**one, "step": step} for step in (1, 2, 3, 3)])
        progress.add_evaluations(session, job, [{**one, "step": 3, "scores": {"tuned": [0.4, 0.6]}}])
        progress.add_evaluations(session, job, [])
    page = http.get(path, params={"limit": 2}).json()
    assert [(item["step"], item["scores"]["tuned"]) for item in page["data"]] == [(3, [0.4, 0.6]), (2, [0.5, None])]
    assert page["data"][0]["along_flow"] == {
        "times": [0, 1],
        "mean": [1, None],
        "error": [0, 0],
        "trouble": "too stiff",
    }
    rest = http.get(path, params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert ([item["step"] for item in rest["data"]], rest["next_cursor"]) == ([1], None)


def test_the_store_refuses_a_held_job_without_a_study(http: httpx.Client, tenant: Tenant) -> None:
    job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
    with pytest.raises(Exception, match="held_by_a_study"), transaction() as session:
        session.execute(update(Job).where(Job.id == UUID(job_id)).values(held=True))
