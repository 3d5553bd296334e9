"""A headless browser for tests of pages, and a page that notes all that it complained about and asked for."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser; not on machines with torch alone")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        # root in a container has no sandbox; parallel coordinates and many points need WebGL, which the processor draws
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


class Noted:
    """A page, what it complained about, and the addresses that it asked for."""

    def __init__(self, browser: "playwright.Browser", **context: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}} | context)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)
