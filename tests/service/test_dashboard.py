"""The dashboard and the reference in a real browser, on a real API."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from service.core.database import transaction
from service.dashboard.endpoints import FILES
from service.jobs import progress
from service.jobs.tables import Job
from service.workers import store as workers
from tests.support.api import SPEC, Api, Tenant, check_problem, client, submit, worker_seen
from tests.support.browser import CEILING_MS, Seen
from tests.support.jobs import claim, stop, succeed
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
LINE = re.compile(r"^M[\d. ]+(L[\d. ]+)+$")
TEN_TIMES_AS_FAST = "const wait = setTimeout; window.setTimeout = (act, ms, ...more) => wait(act, ms / 10, ...more);"
"""A script before a page's own: what it waits for between its looks is a tenth."""


@pytest.fixture
def page(browser: Browser, api: Api) -> Iterator[Page]:
    """A tab of its own, in which nothing may go wrong and nothing may be asked of another host."""
    context = browser.new_context(base_url=api.url, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(CEILING_MS)
    seen = Seen(tab)
    yield tab
    context.close()
    assert seen.complaints == []
    assert {url for url in seen.requests if not url.startswith((f"{api.url}/", f"blob:{api.url}/", "data:"))} == set()


@pytest.fixture
def opened(page: Page, tenant: Tenant) -> Page:
    """The dashboard, in a tab that has the test's key."""
    page.add_init_script(TEN_TIMES_AS_FAST)
    page.add_init_script(f"sessionStorage.setItem('amaml-key', {json.dumps(tenant.key)})")
    page.goto("/")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    return page


def advance(job_id: str, iteration: int) -> None:
    """What a worker does as the trainer reports: curves up to this iteration, an evaluation at 10."""
    points: dict[str, list[tuple[int, float]]] = {
        "meta_loss": [(i, 0.9 * math.exp(-i / 8) + 0.01) for i in range(1, iteration + 1)],
        "gradient_norm": [(i, 0.3 / i) for i in range(1, iteration + 1)],
    }
    if iteration >= 10:
        points |= {
            name: [(10, value)]
            for name, value in (("nrmse_flow", 0.4375), ("nrmse_tuned", 0.25), ("nrmse_random", 1.5))
        }
        points["nrmse_tuned_error"] = [(10, 0.03125)]
    with transaction() as session:
        job = session.get_one(Job, UUID(job_id), with_for_update=True)
        progress.advance(job, "training", iteration, 12.0)
        progress.add_metrics(session, job, points)
        progress.write_event(session, job)


class TestFiles:
    def test_every_file_is_listed_and_there(self, anyone: httpx.Client) -> None:
        folder = Path(__file__).parents[2] / "service" / "dashboard" / "static"
        assert {name for package, _, name in FILES.values() if package == "service.dashboard"} == {
            path.name for path in folder.iterdir()
        }
        for path in FILES:
            answer = anyone.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            again = anyone.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = anyone.head(path)
            assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))

    @pytest.mark.parametrize(
        "name", ["endpoints.py", "..%2fendpoints.py", "%2e%2e/endpoints.py", "style.css/", "", "x"]
    )
    def test_nothing_else_is_served(self, anyone: httpx.Client, name: str) -> None:
        check_problem(anyone.get(f"/dashboard/{name}"), 404, "not_found")

    def test_no_file_names_another_host(self) -> None:
        folder = Path(__file__).parents[2] / "service" / "dashboard" / "static"
        for path in folder.iterdir():
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, path
            assert "innerHTML" not in text, path


class TestKey:
    def test_it_is_asked_for_checked_kept_and_forgotten(self, page: Page, http: httpx.Client, tenant: Tenant) -> None:
        page.goto("/")
        expect(page.get_by_text("$AMAML_HOME/admin.key")).to_be_visible()
        page.get_by_label("Key").fill("two words")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_contain_text("A key is one word")
        page.get_by_label("Key").fill(tenant.key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("There is no job yet.")).to_be_visible()
        page.reload()
        expect(page.get_by_text("There is no job yet.")).to_be_visible()
        page.get_by_role("button", name="Forget the key").click()
        expect(page.get_by_label("Key")).to_be_focused()
        assert page.evaluate("sessionStorage.length + localStorage.length") == 0

    def test_one_that_opens_nothing_is_refused_with_a_sentence(self, page: Page) -> None:
        page.goto("/")
        page.get_by_label("Key").fill("amaml_wrong")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_contain_text("This API key is not known")

    def test_one_that_is_revoked_meanwhile_is_asked_for_anew(
        self, opened: Page, http: httpx.Client, api: Api, tenant: Tenant
    ) -> None:
        other = http.post("/v1/api-keys", json={"name": "other"}).json()["key"]
        (own,) = [one["id"] for one in http.get("/v1/api-keys").json()["data"] if tenant.key.startswith(one["prefix"])]
        with client(api, Tenant(tenant.workspace_id, other)) as revoking:
            assert revoking.delete(f"/v1/api-keys/{own}").status_code == 204
        expect(opened.get_by_label("Key")).to_be_visible()
        expect(opened.get_by_role("alert")).to_contain_text("was revoked")


class TestJobs:
    def test_names_are_text_whatever_they_hold(self, opened: Page, http: httpx.Client) -> None:
        submit(http, name=HOSTILE, tags={"<b>": "</script>"})
        link = opened.get_by_role("link", name=HOSTILE)
        expect(link).to_be_visible()
        link.click()
        expect(opened.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        assert opened.title() == "Job · A-MAML"

    def test_rows_follow_their_jobs(self, opened: Page, http: httpx.Client) -> None:
        job = submit(http, name="to be watched", meta={"iterations": 20})
        row = opened.get_by_role("row", name="to be watched")
        expect(row).to_contain_text("queued")
        row.get_by_role("link").focus()
        claim(job)
        advance(job, 10)
        expect(row).to_contain_text("running")
        expect(row).to_contain_text("10 of 20")
        expect(row).to_contain_text("0.25")
        expect(row.get_by_role("link")).to_be_focused()

    def test_pages_and_states(self, opened: Page, http: httpx.Client) -> None:
        for number in range(31):
            submit(http, name=f"job {number}")
        opened.reload()
        expect(opened.get_by_role("row")).to_have_count(31)
        opened.get_by_role("link", name="Older jobs").click()
        expect(opened.get_by_role("row")).to_have_count(2)
        expect(opened.get_by_role("link", name="job 0", exact=True)).to_be_visible()
        opened.get_by_label("State").select_option("failed")
        expect(opened.get_by_text("No job is failed.")).to_be_visible()


class TestJob:
    def test_one_that_succeeded_is_extended(self, opened: Page, http: httpx.Client) -> None:
        job = submit(http, meta={"iterations": 20})
        opened.goto(f"/#/jobs/{job}")
        extend = opened.get_by_role("button", name="Extend", exact=True)
        expect(extend).to_be_disabled()
        claim(job)
        succeed(job, b"theta")
        extend.click()
        expect(opened.get_by_label("Meta-iterations in all")).to_have_value("40")
        opened.get_by_role("button", name="Leave it").click()
        assert http.get(f"/v1/jobs/{job}").json()["state"] == "succeeded"
        extend.click()
        opened.get_by_label("Meta-iterations in all").fill("30")
        opened.get_by_role("button", name="Extend the job").click()
        expect(opened.locator(".detail", has_text="It goes on to 30 meta-iterations.")).to_be_visible()
        expect(opened.get_by_role("button", name="Download the initialization")).to_be_enabled()
        claim(job)
        expect(opened.locator(".title .badge")).to_have_text("running")  # the page is kept up to date again
        succeed(job, b"more")
        expect(opened.locator(".title .badge")).to_have_text("succeeded")

    def test_what_can_not_be_extended_says_why(self, opened: Page, http: httpx.Client) -> None:
        job = submit(http, meta={"iterations": 20, "optimizer": {"schedule": "cosine"}})
        claim(job)
        succeed(job, b"theta")
        opened.goto(f"/#/jobs/{job}")
        opened.get_by_role("button", name="Extend", exact=True).click()
        opened.get_by_role("button", name="Extend the job").click()
        expect(opened.get_by_text("a cosine schedule ends with the run's 20 meta-iterations")).to_be_visible()

    def test_it_is_shown_while_it_runs_and_steered(self, opened: Page, http: httpx.Client) -> None:
        job = submit(http, meta={"iterations": 20})
        opened.goto(f"/#/jobs/{job}")
        expect(opened.get_by_text("It waits for a free worker.")).to_be_visible()
        expect(opened.get_by_text("No worker has taken the job up yet.")).to_be_visible()
        expect(opened.locator("path.curve[d*=L]")).to_have_count(0)
        claim(job)
        advance(job, 10)
        loss, norm, error = (opened.locator("figure").nth(i) for i in range(3))
        expect(loss.locator(".drawing .curve")).to_have_attribute("d", LINE)
        expect(norm.locator(".drawing .curve")).to_have_attribute("d", LINE)
        expect(error.locator(".drawing .dot")).to_have_count(3)
        expect(error).to_contain_text("fine-tuned 0.25 ± 0.031")
        expect(error).to_contain_text("random start 1.5")
        loss.locator(".plot").focus()
        opened.keyboard.press("ArrowLeft")
        opened.keyboard.press("ArrowLeft")
        expect(loss.locator(".tip")).to_have_text(f"iteration 9meta_loss: {0.9 * math.exp(-9 / 8) + 0.01}")
        expect(opened.get_by_role("button", name="Resume")).to_be_disabled()
        opened.get_by_role("button", name="Pause").click()
        expect(opened.get_by_text("It stops at its next checkpoint.")).to_be_visible()
        stop(job)
        opened.get_by_role("button", name="Resume").click()
        expect(opened.locator(".title .badge")).to_have_text("queued")
        opened.get_by_role("button", name="Cancel", exact=True).click()
        opened.get_by_role("button", name="Keep it").click()
        assert http.get(f"/v1/jobs/{job}").json()["state"] == "queued"
        opened.get_by_role("button", name="Cancel", exact=True).click()
        opened.get_by_role("button", name="Cancel the job").click()
        expect(opened.locator(".title .badge")).to_have_text("cancelled")
        assert http.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"
        expect(opened.locator(".events li span").first).to_have_text(re.compile("^cancelled"))
        states = opened.locator(".events li span").all_text_contents()
        told = [
            event["data"]["state"]
            for event in http.get(f"/v1/jobs/{job}/events").json()["data"]
            if event["kind"] == "state"
        ]
        assert [text.partition(":")[0] for text in reversed(states)] == told

    def test_what_it_has_learned_is_downloaded_and_checked(self, opened: Page, http: httpx.Client) -> None:
        theta = bytes(range(256)) * 400
        job = submit(http)
        claim(job)
        advance(job, 3)
        succeed(job, theta)
        opened.goto(f"/#/jobs/{job}")
        expect(opened.get_by_text("Its initialization is ready.")).to_be_visible()
        with opened.expect_download() as download:
            opened.get_by_role("button", name="Download the initialization").click()
        assert hashlib.sha256(download.value.path().read_bytes()).digest() == hashlib.sha256(theta).digest()
        assert download.value.suggested_filename == f"{job}.safetensors"
        expect(opened.get_by_text("its sha256 is the job's")).to_be_visible()
        expect(opened.get_by_role("button", name="Cancel", exact=True)).to_be_disabled()

    def test_an_ended_job_is_asked_for_no_more(self, opened: Page, http: httpx.Client) -> None:
        waiting, ended = submit(http), submit(http)
        http.post(f"/v1/jobs/{ended}/cancel")
        asked: list[str] = []
        opened.clock.install()
        opened.on("request", lambda request: asked.append(request.url) if "/v1/" in request.url else None)
        for job, events in ((waiting, 1), (ended, 2)):
            opened.goto(f"/#/jobs/{job}")
            opened.reload()
            expect(opened.locator(".events li")).to_have_count(events)
            asked.clear()
            with opened.expect_request("**/healthz"):  # the last of what it asks for in ten minutes of its clock
                opened.clock.run_for(600_000)
                opened.evaluate("fetch('/healthz')")
            assert (asked == []) is (job == ended)

    def test_one_that_is_not_there(self, opened: Page) -> None:
        opened.goto("/#/jobs/01a2054d-a188-75bf-b336-be8cb1ebcb98")
        expect(opened.get_by_role("alert")).to_contain_text("There is no such job")

    def test_nothing_is_wider_than_the_screen(self, opened: Page, http: httpx.Client) -> None:
        job = submit(http, name="w" * 200, meta={"iterations": 20})
        claim(job)
        advance(job, 20)
        for address, shown in ((f"/#/jobs/{job}", ".drawing .curve"), ("/#/jobs", "progress"), ("/#/workers", "h1")):
            opened.goto(address)
            expect(opened.locator(shown).first).to_be_visible()
            for width in (360, 768, 1920):
                opened.set_viewport_size({"width": width, "height": 800})
                wait_until(lambda: opened.evaluate("document.documentElement.scrollWidth <= innerWidth"))


class TestTicks:
    """What `scale.js` makes of a range of values."""

    @pytest.mark.parametrize(
        ("call", "ticks"),
        [
            ("linearTicks(0.13, 0.87, 5)", [0.2, 0.4, 0.6, 0.8]),
            ("linearTicks(-3, 12, 5)", [0, 5, 10]),
            ("linearTicks(2, 2, 5)", [2]),
            ("logTicks(0.02, 30, 5)", [0.1, 1, 10]),
            ("logTicks(0.3, 7, 5)", [0.5, 1, 2, 5]),
            ("logTicks(0.5, 0.9, 5)", [0.5, 0.6, 0.7, 0.8, 0.9]),
            ("logTicks(1e-12, 1, 5)", [1e-12, 1e-9, 1e-6, 1e-3, 1]),
        ],
    )
    def test_they_are_round_values_within_the_range(self, page: Page, call: str, ticks: list[float]) -> None:
        page.goto("/")
        assert page.evaluate(f"import('/dashboard/scale.js').then((scale) => scale.{call})") == pytest.approx(ticks)


class TestWorkers:
    def test_they_are_listed_and_readiness_is_told(self, opened: Page) -> None:
        worker = worker_seen()
        opened.get_by_role("link", name="Workers").click()
        row = opened.get_by_role("row", name=str(worker))
        expect(row).to_contain_text("lives")
        expect(row).to_contain_text("cpu")
        with transaction() as session:
            gpu = {"name": "NVIDIA H100", "memory_bytes": 80 << 30, "uuid": "GPU-1"}
            workers.seen(session, worker, "here", 1, ["cpu", "cuda"], gpu)
        expect(row).to_contain_text("NVIDIA H100, 80 GiB")
        opened.reload()
        expect(opened.locator("#readiness")).to_have_text("ready")


def test_the_reference_needs_no_other_host(page: Page) -> None:
    page.goto("/docs")
    expect(page.get_by_text("Submit a job")).to_be_visible()
    expect(page.locator(".opblock").first).to_be_visible()
    page.get_by_text("Submit a job").click()
    expect(page.get_by_text("Idempotency-Key", exact=True)).to_be_visible()


def test_studies_are_listed_and_their_reports_saved(opened: Page, http: httpx.Client, tmp_path: Path) -> None:
    study = {"name": HOSTILE, "base": SPEC, "grid": {"/method/kind": ["amaml", "reptile"], "/runtime/seed": [0, 1, 2]}}
    study_id = http.post("/v1/studies", json=study).json()["id"]
    opened.get_by_role("link", name="Studies").click()
    listed = opened.locator("tbody tr")
    expect(listed).to_have_count(1)
    expect(listed).to_contain_text("2 × method.kind, 3 × runtime.seed")
    expect(listed).to_contain_text("6 queued")
    with opened.expect_download() as saving:
        opened.get_by_role("button", name="Save the report").click()
    assert saving.value.suggested_filename == f"study-{study_id}.html"
    saved = tmp_path / "report.html"
    saving.value.save_as(saved)
    assert saved.read_text(encoding="utf-8").startswith("<!doctype html>")
    http.post(f"/v1/studies/{study_id}/cancel")
    expect(listed).to_contain_text("6 cancelled")
