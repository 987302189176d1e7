"""What the API shows of a study: itself, lists, the report, evaluations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx2 as httpx
import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from service.core.database import engine, transaction
from service.jobs import progress
from service.jobs.tables import Job
from service.studies import store as studies
from tests.support.api import Tenant, check_problem
from tests.support.jobs import claim, fail
from tests.support.study_requests import cells, finish, submit


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
