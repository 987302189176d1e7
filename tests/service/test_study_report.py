"""The report's numbers against direct computations, without a service."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from playwright.sync_api import Browser, Page, expect

from service.jobs.tables import Evaluation
from service.studies.report.page import POLICY, as_html
from service.studies.report.plot import Point, Series, figure
from service.studies.report.report import StudyReport, report
from service.studies.report.student import incomplete_beta, paired_p_value, two_sided
from service.studies.report.table import as_csv, as_markdown
from service.studies.report.words import axis_name, label, plus_minus, probability
from service.studies.store import CellResult, CellRow, Found
from service.studies.tables import Study
from tests.support.browser import Seen

stats = pytest.importorskip("scipy.stats")
special = pytest.importorskip("scipy.special")
numpy = pytest.importorskip("numpy")

HOSTILE = "</style><script>x</script>|*"
TASKS = 20


class TestStudent:
    @pytest.mark.parametrize("degrees", [1, 2, 5, 29, 99, 299, 10_000])
    def test_tails_are_scipys(self, degrees: int) -> None:
        for t in (0.0, 1e-6, 0.1, 0.9, 1.96, 3.0, 10.0, 40.0, -2.5):
            assert two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-10, abs=1e-300)

    def test_the_incomplete_beta_function_is_scipys(self) -> None:
        for a in (0.5, 1.0, 7.5, 200.0):
            for b in (0.5, 3.0, 40.0):
                for x in (0.0, 1e-9, 0.2, 0.5, 0.97, 1.0):
                    assert incomplete_beta(a, b, x, 1 - x) == pytest.approx(
                        special.betainc(a, b, x), rel=1e-9, abs=1e-300
                    )

    def test_paired_differences(self) -> None:
        one, other = numpy.random.default_rng(0).normal(size=(2, 50))
        expected = stats.ttest_rel(one, other).pvalue
        assert paired_p_value(list(one - other)) == pytest.approx(expected, rel=1e-10)
        assert paired_p_value([0.3]) is None
        assert paired_p_value([0.0, 0.0]) == 1.0
        assert paired_p_value([0.5, 0.5]) == 0.0


GRID = {"/family/shots": [50, 100], "/method/kind": ["amaml", "reptile", "maml"], "/runtime/seed": [0, 1, 2]}


def scores_of(shots: int, method: str, seed: int) -> Any:
    """[TASKS]: what the test's jobs score; the tasks of a seed are the same for every method."""
    tasks = numpy.random.default_rng([seed, shots]).uniform(0.3, 0.5, TASKS)
    noise = numpy.random.default_rng([seed, shots, len(method)]).normal(scale=0.02, size=TASKS)
    return tasks + noise + {"amaml": 0.0, "reptile": 0.05, "maml": 0.002}[method]


def result(number: int, coordinates: dict[str, Any], state: str = "succeeded", **changes: Any) -> CellResult:
    scores = list(scores_of(*coordinates.values()))
    reason = "diverged" if state == "failed" else None
    metrics = {"memory_bytes": float(2**20 * (400 + number))}
    cell = CellRow(number, coordinates, uuid4(), state, reason, reason and "It diverged.", 70, 100, metrics)
    evaluation = Evaluation(
        step=100,
        metric=changes.get("metric", "nrmse"),
        higher_is_better=changes.get("higher", False),
        scores={"tuned": scores, "flow": [score + 1 for score in scores]},
        curve={"epochs": [0, 10], "mean": [0.9 + number, 0.5], "error": [0.1, 0.05]},
        along_flow=None,
    )
    return CellResult(cell, evaluation, 0.01 * (1 + number))


def cells() -> list[dict[str, Any]]:
    shots, methods, seeds = GRID.values()
    return [dict(zip(GRID, (one, method, seed), strict=True)) for one in shots for method in methods for seed in seeds]


def found(results: list[CellResult], grid: dict[str, Any] = GRID, name: str = "a study") -> Found:
    states: dict[str, int] = {}
    for one in results:
        states[one.cell.state] = states.get(one.cell.state, 0) + 1
    study = Study(
        id=UUID("01a2054d-a188-75bf-b336-be8cb1ebcb98"), name=name, state="finished", grid=grid, base={}, concurrency=2,
        created_at=datetime.now(UTC), ended_at=None,
    )  # fmt: skip
    return Found(study, states, 1, 1, "v")


@pytest.fixture
def results() -> list[CellResult]:
    """All succeeded but one seed of reptile at 100 shots."""
    failing = {"/family/shots": 100, "/method/kind": "reptile", "/runtime/seed": 1}
    return [result(number, cell, "failed" if cell == failing else "succeeded") for number, cell in enumerate(cells())]


@pytest.fixture
def made(results: list[CellResult]) -> StudyReport:
    return report(found(results, name=HOSTILE), results, "tuned")


def test_means_errors_and_tests_are_those_of_a_direct_computation(made: StudyReport) -> None:
    assert [block.coordinates for block in made.blocks] == [{"/family/shots": 50}, {"/family/shots": 100}]
    for block in made.blocks:
        shots = block.coordinates["/family/shots"]
        assert [row.coordinates["/method/kind"] for row in block.rows] == ["amaml", "reptile", "maml"]
        assert [row.best for row in block.rows] == [True, False, False]
        for row in block.rows:
            method = row.coordinates["/method/kind"]
            seeds = [0, 2] if (shots, method) == (100, "reptile") else [0, 1, 2]
            mine = numpy.array([scores_of(shots, method, seed) for seed in seeds])
            means = mine.mean(axis=1)
            assert row.score is not None
            assert row.score.over == "seeds"
            assert row.score.mean == pytest.approx(means.mean())
            assert row.score.error == pytest.approx(stats.sem(means))
            assert row.also["flow"].mean == pytest.approx(means.mean() + 1)
            if row.best:
                assert (row.p_value, row.difference, row.pairs) == (None, None, 0)
                continue
            best = numpy.array([scores_of(shots, "amaml", seed) for seed in seeds])
            assert row.pairs == mine.size
            assert row.difference == pytest.approx((mine - best).mean())
            assert row.p_value == pytest.approx(stats.ttest_rel(mine.ravel(), best.ravel()).pvalue, rel=1e-8)


def test_time_memory_and_curves_are_those_of_the_scored_jobs(made: StudyReport) -> None:
    row = made.blocks[1].rows[1]  # its cells are 12, 13 and 14, and 13 has failed
    assert (len(row.jobs), row.scored) == (3, 2)
    assert row.seconds == pytest.approx((0.13 + 0.15) / 2)
    assert row.memory_bytes == 2**20 * 414
    assert row.curve is not None
    assert row.curve.epochs == [0, 10]
    assert row.curve.mean == pytest.approx([0.9 + 13, 0.5])
    assert row.curve.error == pytest.approx([1.0, 0.0])


def test_a_failed_cell_is_shown_with_its_reason(made: StudyReport) -> None:
    (trouble,) = made.without_result
    assert (trouble.state, trouble.status_reason, trouble.iteration) == ("failed", "diverged", 70)
    for text in (as_csv(made), as_markdown(made), as_html(made, {})):
        assert "It diverged." in text
    assert [job.score is None for job in made.blocks[1].rows[1].jobs] == [False, True, False]


def test_a_row_with_fewer_seeds_is_not_the_best(results: list[CellResult]) -> None:
    lucky = [
        result(one.cell.number, one.cell.coordinates, "cancelled")
        if one.cell.coordinates["/method/kind"] == "amaml" and one.cell.coordinates["/runtime/seed"] > 0
        else one
        for one in results
    ]
    rows = report(found(lucky), lucky, "tuned").blocks[0].rows
    assert [row.best for row in rows] == [False, False, True]
    assert rows[0].score is not None
    assert rows[0].score.over == "tasks"
    assert rows[0].score.error == pytest.approx(stats.sem(scores_of(50, "amaml", 0)))
    assert rows[0].pairs == TASKS


def test_of_an_accuracy_the_highest_is_the_best() -> None:
    results = [result(number, cell, metric="accuracy", higher=True) for number, cell in enumerate(cells())]
    assert [row.best for row in report(found(results), results, "tuned").blocks[0].rows] == [False, True, False]


def test_without_any_result_there_is_still_a_report() -> None:
    results = [CellResult(result(number, cell, "queued").cell, None, None) for number, cell in enumerate(cells())]
    made = report(found(results), results, "tuned")
    assert len(made.without_result) == len(results)
    assert not any(row.best or row.score for block in made.blocks for row in block.rows)
    assert "queued" in as_html(made, {})
    assert as_csv(made).count("\n") == 7
    assert as_markdown(made)


def test_a_score_that_is_not_finite_makes_no_mean() -> None:
    results = [result(number, cell) for number, cell in enumerate(cells())]
    evaluation = results[0].evaluation
    assert evaluation is not None
    evaluation.scores["tuned"][3] = None
    row = report(found(results), results, "tuned").blocks[0].rows[0]
    assert row.jobs[0].score is None
    assert row.score is not None
    assert row.score.mean == pytest.approx(numpy.mean([scores_of(50, "amaml", seed) for seed in (1, 2)]))


def test_another_score_can_be_compared(results: list[CellResult]) -> None:
    made = report(found(results), results, "flow")
    assert made.blocks[0].rows[0].score is not None
    assert made.blocks[0].rows[0].score.mean > 1
    assert len(report(found(results), results, "nonesuch").without_result) == len(results)


def test_csv_is_the_report(made: StudyReport) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert len(lines) == 6
    for line, row in zip(lines, [row for block in made.blocks for row in block.rows], strict=True):
        assert row.score is not None
        assert float(line["mean"]) == row.score.mean
        assert line["/method/kind"] == row.coordinates["/method/kind"]
        assert int(line["best"]) == row.best
        assert line["p_value"] == ("" if row.p_value is None else str(row.p_value))


def test_markdown_has_the_best_in_bold_and_escapes_names(made: StudyReport) -> None:
    text = as_markdown(made)
    assert text.count("**amaml**") == 2
    assert "| best |" in text
    assert text.startswith("# \\</style>\\<script>x\\</script>\\|\\*\n")
    assert "| < 0.001 |" in text


def test_the_page_stands_alone(made: StudyReport) -> None:
    text = as_html(made, {"name": HOSTILE})
    assert text.count("<script") == 1
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<figure") == 2


def test_numbers_of_an_axis_are_plotted_against() -> None:
    grid = {"/trajectory/length": [1, 2, 4], "/method/kind": ["amaml", "maml"]}
    points = [(length, kind) for length in grid["/trajectory/length"] for kind in grid["/method/kind"]]
    results = []
    for number, (length, kind) in enumerate(points):
        one = result(number, dict(zip(GRID, (50, kind, number), strict=True)))
        coordinates = {"/trajectory/length": length, "/method/kind": kind}
        results.append(one._replace(cell=one.cell._replace(coordinates=coordinates)))
    text = as_html(report(found(results, grid), results, "tuned"), {})
    for title in ("nrmse tuned against length", "ms a meta-update against length", "MiB a meta-update against length"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert text.count("<figure") == 4


def test_points_are_a_table_that_needs_no_script() -> None:
    drawn = figure(
        "t", "x", "y", [Series("one", [Point(0, 0.25), Point(10, 1, 0.5)], True), Series("<b>", [Point(10, 2)])]
    )
    assert "<th scope=col>x</th><th scope=col class=best>one</th><th scope=col>&lt;b&gt;</th>" in drawn
    assert '<tr><td data-value="0">0</td><td data-value="0.25">0.25</td><td>–</td></tr>' in drawn
    assert '<td data-value="1" data-error="0.5">1.00 ± 0.50</td><td data-value="2">2</td>' in drawn
    assert "<details open>" in drawn
    assert figure("t", "x", "y", [Series("none", [])]) == ""


@pytest.mark.processes
class TestInABrowser:
    @pytest.fixture
    def page(self, browser: Browser, made: StudyReport) -> Iterator[Page]:
        """The report as the API answers with it."""
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab = context.new_page()
        seen = Seen(tab)
        document = {"content_type": "text/html; charset=utf-8", "headers": {"Content-Security-Policy": POLICY}}
        tab.route("**/*", lambda route: route.fulfill(body=as_html(made, {"name": HOSTILE}), **document))
        tab.goto("http://reports.invalid/report")
        yield tab
        context.close()
        assert seen.complaints == []
        assert seen.requests == ["http://reports.invalid/report"]

    def test_the_dashboards_chart_draws_the_points(self, page: Page) -> None:
        chart = page.locator("figure").nth(1)
        expect(chart.locator(".drawing .curve")).to_have_count(3)
        expect(chart.locator(".drawing .dot")).to_have_count(6)
        expect(chart.locator("li.best")).to_contain_text("amaml 0.5")
        expect(chart.locator(".unit").last).to_have_text("nrmse, log scale")  # from 0.5 to 16.9
        chart.locator(".plot").focus()
        page.keyboard.press("ArrowLeft")
        expect(chart.locator(".tip")).to_contain_text("epochs of fine-tuning 10amaml: 0.5reptile: 0.5")
        expect(chart.locator("table")).to_be_hidden()
        chart.get_by_text("Values").click()
        expect(chart.get_by_role("row").nth(1)).to_contain_text("0")

    def test_without_scripts_the_points_are_tables(self, browser: Browser, made: StudyReport) -> None:
        with browser.new_context(java_script_enabled=False) as context:
            tab = context.new_page()
            tab.set_content(as_html(made, {}))
            table = tab.locator("figure").nth(1).get_by_role("table")
            expect(table).to_be_visible()
            assert table.get_by_role("columnheader").all_inner_texts() == [
                "epochs of fine-tuning",
                "amaml",
                "reptile",
                "maml",
            ]
            assert table.get_by_role("row").last.get_by_role("cell").all_inner_texts() == ["10", "0.5", "0.5", "0.5"]

    def test_bars_reach_from_one_end_of_the_error_to_the_other(self, page: Page) -> None:
        heights = page.evaluate(
            """() => {
              const group = document.querySelector("figure .drawing .best");
              const [, top, bottom] = group.querySelector(".bars").getAttribute("d").match(/M\\S+ (\\S+?)V(\\S+)/);
              return [top, bottom, group.querySelector(".dot").getAttribute("cy")].map(Number);
            }"""
        )
        low, high, middle = heights
        assert low > middle > high
        assert low - middle == pytest.approx(middle - high, abs=0.2)


def test_words() -> None:
    assert axis_name("/method/kind") == "method.kind"
    assert label({"/method/kind": "maml", "/runtime/seed": 0}) == "maml, seed 0"
    assert label({"/method": {"kind": "maml", "steps": 5}}) == "maml (steps 5)"
    assert plus_minus(0.38123, 0.00432) == "0.3812 ± 0.0043"
    assert plus_minus(12.3, None) == "12.3"
    assert plus_minus(None, None) == "–"
    assert probability(0.0004) == "< 0.001"
    assert math.isclose(float(probability(0.0321)), 0.032)
