"""The page in headless Chromium where the gateway errs, hangs or is another program; nobody looks; hostile phones."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.browser import Chromium, playwright
from tests.server.api.gateway import MODEL, gateway
from tests.server.dashboard_page import MARKUP, Drawer, page_of

# The loop is the one that drives the browser of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")
STRANGE = "What answers here is not the gateway"
# What comes instead of a record, and what the page says then.
ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"status": 500, "body": "<h1>oops</h1>"}, "the gateway answered 500"),
    ({"status": 401, "json": {"error": {"message": "a key is wanted"}}}, "Locked."),
    ({"status": 503, "json": {"error": {"message": f"down {MARKUP}", "hint": "wait"}}}, f"down {MARKUP} wait"),
    ({"status": 200, "body": "<h1>It works!</h1>"}, STRANGE),
    ({"status": 200, "json": None}, STRANGE),
    ({"status": 200, "json": {"nodes": 7, "phones": 7, "invitations": 7}}, STRANGE),
    ({"status": 200, "json": {"nodes": [{}], "phones": [None], "invitations": [{}]}}, STRANGE),
]
# A script of the page's own reach that sets markup: the policy lets it run nothing.
INJECT = """(markup) => new Promise((resolve) => {
  const tell = (event) => resolve(event.effectiveDirective);
  document.addEventListener("securitypolicyviolation", tell, {once: true});
  document.body.insertAdjacentHTML("beforeend", markup);
})"""
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def card(node: str) -> str:
    return f"[data-node='{node}']"


async def test_errors_and_answers_of_others_are_told_and_end_nothing(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    answer: dict[str, Any] = {}

    async def instead(route: Any) -> None:
        await route.fulfill(**answer)

    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"{card(node)} .foot button", "Drain")
        for path in ("**/health", "**/api/phones"):
            await browser.page.route(path, instead)
        for wrong, words in ANSWERS:
            answer.clear()
            answer.update(wrong)
            await browser.shows("#summary", words)
            await browser.shows("#fleet.stale #fleet-summary", "As it was at")
            await browser.shows(f"{card(node)} .name", "Pixel 5")
        async with browser.page.expect_response("**/api/phones"):
            pass
        await browser.page.unroute_all(behavior="wait")
        await browser.shows("#summary", "Everything is ready.")
        await playwright.expect(browser.page.locator("#fleet")).not_to_have_class("stale")
        await playwright.expect(browser.page.locator("#key-form")).to_be_hidden()
        await drawer.joining.enable(node, False)
        await browser.shows(f"{card(node)} .foot button", "Resume")  # by /api/phones alone: that look lives, too


async def test_a_gateway_that_hangs_is_one_that_does_not_answer(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    await drawer.add(20, "Pixel 5")
    held, go = asyncio.Event(), asyncio.Event()

    async def hold(route: Any) -> None:
        held.set()
        await go.wait()
        await route.abort()

    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows("#summary", "Everything is ready.")
        await browser.page.clock.install()
        await browser.page.route("**/health", hold)
        await held.wait()
        await browser.shows("#summary", "Everything is ready.")
        await browser.page.clock.fast_forward(10_000)
        await browser.shows("#summary", "The gateway does not answer.")
        await browser.shows("#fleet-summary", "As it was at")
        go.set()
        await browser.page.unroute_all(behavior="ignoreErrors")
        await browser.page.clock.fast_forward(2_000)
        await browser.shows("#summary", "Everything is ready.")
        await browser.page.route("**/ask_stream", lambda route: route.abort())
        await browser.ask("hi")
        await browser.shows("#thread .trouble", "The gateway does not answer.")


async def test_a_page_that_nobody_sees_asks_nothing_and_is_right_once_it_is_seen(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    asked: list[str] = []
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"{card(node)} .foot button", "Drain")
        await browser.page.clock.install()
        async with browser.page.expect_response("**/health"), browser.page.expect_response("**/api/phones"):
            pass
        await browser.page.evaluate(HIDE, True)
        await browser.page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=5))
        browser.page.on("request", lambda request: asked.append(request.url))
        await browser.page.clock.run_for(60_000)
        await drawer.joining.enable(node, False)
        await browser.page.evaluate("1")  # behind every request that was made by now
        assert asked == []
        await browser.page.evaluate(HIDE, False)
        await browser.shows(f"{card(node)} .state", "drained")
        await browser.shows(f"{card(node)} .foot button", "Resume")


async def test_what_a_phone_tells_twice_is_shown_once(chromium: Chromium):
    async def twice(route: Any) -> None:
        answer = await route.fetch()
        told = await answer.json()
        told["nodes"][0]["models"] = [MODEL, MARKUP, MODEL, MARKUP]
        await route.fulfill(response=answer, json=told)

    async with page_of(chromium, gateway()) as browser:
        await browser.page.route("**/health", twice)
        await browser.shows(".models", MARKUP)
        for _ in range(2):
            async with browser.page.expect_response("**/health"):
                pass
        await playwright.expect(browser.page.locator(".models li")).to_have_count(2)
        await browser.page.unroute_all(behavior="wait")


async def test_a_phones_words_for_itself_are_text_and_markup_would_run_nothing(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, MARKUP, chip=MARKUP, android=MARKUP, mode=MARKUP, tokens_per_second=MARKUP)
    drawer.tell(node, temperature_c=45.0)
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"{card(node)} .foot .facts", f"{MARKUP} · Android {MARKUP} · {MARKUP}")
        await browser.shows(f"{card(node)} .why", "Resting to cool down")
        assert await browser.page.locator("img").count() == 0
        told = browser.page.expect_console_message(lambda message: "Content Security Policy" in message.text)
        async with told:
            assert await browser.page.evaluate(INJECT, MARKUP) == "script-src-attr"
        browser.troubles.clear()
