"""POST /v1/studies: which studies are taken, which are refused, and what is wrong with these."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import pytest

from tests.support.api import JSON, SPEC, check_problem
from tests.support.study_requests import GRID, cells, held, submit


def refused(http: httpx.Client, base: Any = SPEC, grid: Any = GRID, **changes: Any) -> dict[str, str]:
    answer = http.post("/v1/studies", json={"base": base, "grid": grid, **changes})
    assert http.get("/v1/studies").json()["data"] == []
    assert http.get("/v1/jobs").json()["data"] == []
    return {error["pointer"]: error["detail"] for error in check_problem(answer, 422, "invalid")["errors"]}


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


@pytest.mark.parametrize("number", [b"1e999", b"-1E+400", b"1" + 220 * b"0" + b"e99", b"1" + 309 * b"0" + b".0"])
def test_a_base_that_no_database_can_hold_is_refused(http: httpx.Client, number: bytes) -> None:
    body = b'{"base": {"family": {"kind": "sinusoid"}, "trajectory": {"length": %s}}, "grid": {"/trajectory/length": [1, 2]}}'
    body %= number
    answer = http.post("/v1/studies", content=body, headers=JSON)
    (error,) = check_problem(answer, 422, "invalid")["errors"]
    assert error["pointer"] == "/base/trajectory/length"
    assert "finite" in error["detail"]
