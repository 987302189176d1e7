"""A real Chromium, and what a page in it has asked for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.support.waiting import CEILING_SECONDS

CEILING_MS = 1_000 * CEILING_SECONDS
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    named = os.environ.get("AMAML_TEST_BROWSER")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: install Debian's package chromium, or name one in AMAML_TEST_BROWSER")
    expect.set_options(timeout=CEILING_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


class Seen:
    """What a page has asked for, and what it has complained about."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self._line)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _line(self, line: ConsoleMessage) -> None:
        # The browser notes each refusal of the API, too; that is the API's word and no fault of the page.
        refused = line.text.startswith("Failed to load resource") and re.search("/v1/|/readyz$", line.location["url"])
        if line.type in ("error", "warning") and not refused:
            self.complaints.append(f"{line.text} ({line.location['url']})")
