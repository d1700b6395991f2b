"""Headless Chromium for tests of the pages: one page, and everything about it that should not have happened.

Starting it takes longer than most of what is tested: the fixture `chromium` (tests/conftest.py) has one for each file,
and every test a page in a context of its own, without anything of the others' (cookies, storage, cache, permissions).
Whoever imports this is skipped, with the reason, where there is no Chromium or no playwright.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is not installed here: the page is not tested", allow_module_level=True)
# It neither draws with a graphics card nor looks for news of itself.
QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: the page is not tested")
# A browser beside other tests on two cores is slow at times; who waits in vain has waited long enough by then.
PATIENCE_MS = 60_000
playwright.expect.set_options(timeout=PATIENCE_MS)


class Browser:
    """One page, and everything about it that should not have happened."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.troubles: list[str] = []
        self.foreign: list[str] = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", self._console)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        # A refused request is an error line of the browser's own; the page tells it in words.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.troubles.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:")):
            self.foreign.append(request.url)

    async def shows(self, selector: str, text: str) -> None:
        await playwright.expect(self.page.locator(selector)).to_contain_text(text)

    async def ask(self, question: str) -> None:
        await self.page.fill("#prompt", question)
        await self.page.click("#send")


class Chromium:
    """A browser that runs; every test has a page of its own."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    @asynccontextmanager
    async def opened(self, address: str, **context: Any) -> AsyncIterator[Browser]:
        """The page of the gateway at the address. What it must never do fails the test at the end."""
        page = await self._browser.new_page(**context)
        try:
            page.set_default_timeout(PATIENCE_MS)
            made = Browser(page, address)
            await page.goto(address)
            yield made
            assert await page.evaluate("window.hacked") is None
            assert (made.troubles, made.foreign) == ([], [])
        finally:
            await page.context.close()


@asynccontextmanager
async def launched() -> AsyncIterator[Chromium]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *arguments], timeout=2 * PATIENCE_MS
        )
        try:
            yield Chromium(browser)
        finally:
            await browser.close()
