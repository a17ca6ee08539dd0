"""Opens ComfyUI's page in a headless Chromium (playwright from PyPI, the system's chromium)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = [
    "--no-sandbox",  # root has none, and containers often have no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"


def chromium() -> str | None:
    """Path of the system's browser, None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def comfy_page(url: str, *, width: int = 1600, height: int = 1000, locale: str = "en-US") -> Iterator[Page]:
    """ComfyUI's page, ready to be used. Requests that left the server's own address are in ``page.outside``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, locale=locale)
            page.outside = []
            own = (url, "data:", "blob:")
            # the server's content policy blocks the page's look-ups at api.comfy.org before they reach the network
            page.on(
                "requestfailed",
                lambda r: None if r.url.startswith(own) or r.failure == "csp" else page.outside.append(r.url),
            )
            page.on("requestfinished", lambda r: None if r.url.startswith(own) else page.outside.append(r.url))
            page.goto(url)
            page.wait_for_function(READY, timeout=120000)
            page.wait_for_timeout(1500)  # the start-up graph is still being put in
            yield page
        finally:
            browser.close()


def fit_view(page: Page) -> None:
    """Bring the whole graph into the window."""
    page.keyboard.press(".")
    page.wait_for_timeout(800)
