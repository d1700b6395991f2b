"""Phones on the page in headless Chromium: what they tell, why they rest, the button that drains, cables."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.browser import Browser, Chromium, playwright
from tests.server.dashboard_page import MARKUP, Drawer, cabled, page_of, tracker

# The loop is the one that drives the browser of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")
# Of every text that is seen: its contrast to what is behind it (WCAG 2, relative luminance), where that is below 4.5.
FAINT = """() => {
  const parse = (words) => words.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255).map((part) => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0);
  const paper = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((part) => part.nodeType === 3 && part.data.trim());
    if (!own || !one.checkVisibility() || one.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(paper(one))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) found.push(`${one.className || one.id}: ${one.textContent} ${contrast.toFixed(2)}`);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, img")]
  .filter((one) => !(one.labels?.length || one.ariaLabel || one.alt || one.textContent.trim()))
  .map((one) => one.outerHTML)"""
# Where things are on the page.
PLACES = """() => [...document.querySelectorAll(".node, .node button, .readings > div, footer")]
  .map((one) => one.getBoundingClientRect())
  .map((place) => [Math.round(place.x), Math.round(place.y + scrollY)])"""
# How far from its card's edge each reading begins: once for all cards of one width, where they stand below one another.
COLUMNS = """() => [...new Set([...document.querySelectorAll(".readings")].map((one) => [...one.children]
  .map((cell) => Math.round(cell.getBoundingClientRect().x - one.getBoundingClientRect().x)).join(" ")))]"""
# Readings that reach into their neighbours, and what is too small for a finger (WCAG 2.5.5).
CRAMPED = """() => [...document.querySelectorAll(".readings > div")]
  .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"""
SMALL = """() => [...document.querySelectorAll("button, select, input, footer a")]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 44).map((one) => one.outerHTML)"""


def card(node: str) -> str:
    return f"[data-node='{node}']"


async def reads(browser: Browser, node: str, kind: str, look: str, words: str) -> None:
    await browser.shows(f"{card(node)} .readings .{kind}.{look}", words)


async def test_each_phone_tells_its_battery_heat_signal_and_speed_in_words(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    good = await drawer.add(20, MARKUP, tokens_per_second=12.5, android="14", ram_bytes=6 * 2**30)
    hot, old, fresh = await drawer.add(21, "hot"), await drawer.add(22, "old"), await drawer.add(23, "fresh")
    drawer.tell(old, ago=600, level=40.0, charging=False, temperature_c=44.0)
    drawer.silence(old)
    async with page_of(chromium, drawer.page()) as browser:
        await reads(browser, fresh, "battery", "untold", "not told")
        for node, signal, told in (
            (good, -48, {"level": 81.4, "charging": True, "temperature_c": 31.0, "thermal_status": 0}),
            (hot, -82, {"level": 9.0, "charging": False, "temperature_c": 44.0, "thermal_status": 3}),
        ):
            drawer.tell(node, signal=signal, **told)
        await browser.shows(f"{card(good)} .name", MARKUP)
        await reads(browser, good, "battery", "good", "81 %charging")
        await reads(browser, good, "heat", "good", "31 °C")
        await reads(browser, good, "signal", "good", "strong-48 dBm")
        await reads(browser, good, "speed", "speed", "12.5tokens/s")
        await browser.shows(f"{card(good)} .foot .facts", "SM8550 · 6 GB RAM · Android 14")
        await reads(browser, hot, "battery", "bad", "9 %on battery")
        await reads(browser, hot, "heat", "bad", "44 °Chot")
        await reads(browser, hot, "signal", "bad", "weak-82 dBm")
        assert await browser.page.locator(f"{card(hot)} .signal .gauge .on").count() == 1
        assert await browser.page.locator(f"{card(good)} .battery .level").get_attribute("style") == "width: 81%;"
        await reads(browser, old, "battery", "old", "40 %")
        await browser.shows(f"{card(old)} .why", "nothing since")
        await browser.shows(f"{card(old)} .error", "no route to host")
        await browser.shows("#fleet-summary", "2 free · 1 resting · 1 silent · 12.5 tokens/s together")
        await browser.shows("#figure-nodes", "2/4")
        assert await browser.page.inner_text("#news") == ""  # who was there already has not just joined


async def test_a_rest_is_told_with_its_reason_and_its_beginning_and_so_is_less_work(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    hot, low, warm = await drawer.add(20, "hot"), await drawer.add(21, "low"), await drawer.add(22, "warm")
    both = await drawer.add(23, "both")
    drawer.tell(hot, ago=3 * 60 + 5, temperature_c=45.0, thermal_status=3)
    drawer.tell(hot, temperature_c=44.0, thermal_status=3)
    drawer.tell(low, level=9.0, charging=False)
    drawer.tell(both, level=9.0, charging=False, temperature_c=45.0)
    drawer.tell(warm, temperature_c=40.0)
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"{card(hot)}.rest .state", "resting")
        await browser.shows(f"{card(hot)} .why", "Resting to cool down since")
        await browser.shows(
            f"{card(hot)} .why", "(3 min): 44.0 °C, back at 39 °C, thermal status severe, back at light"
        )
        await browser.shows(f"{card(low)} .why", "Resting to charge since")
        await browser.shows(f"{card(low)} .why", "9 %, not charging, back at 30 %")
        await browser.shows(f"{card(both)} .why", "Resting to cool down and charge since")
        await browser.shows(f"{card(warm)} .why", "Warm: gets 60 % of its usual work until it cools")
        await browser.shows(f"{card(warm)} .heat.warn", "40 °Cwarm")
        await browser.shows("#summary", "missing or resting")
        drawer.tell(hot, temperature_c=30.0, thermal_status=0)
        await browser.shows(f"{card(hot)} .state", "free")
        await playwright.expect(browser.page.locator(f"{card(hot)} .why")).to_be_hidden()


async def test_a_phone_is_drained_and_resumed_and_the_focus_stays(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node, go = await drawer.add(20, "Pixel 5"), asyncio.Event()
    orders = []

    async def later(route: Any) -> None:
        orders.append(route.request.url)
        await go.wait()
        await route.continue_()

    async with page_of(chromium, drawer.page()) as browser:
        button = f"{card(node)} .foot button"
        await browser.shows(button, "Drain")
        await browser.page.route("**/drain", later)
        await browser.page.focus(button)
        await browser.page.keyboard.press("Enter")
        await browser.shows(button, "Draining…")
        await playwright.expect(browser.page.locator(button)).to_have_attribute("aria-disabled", "true")
        await browser.page.keyboard.press("Enter")  # while it works, another press is nothing
        go.set()
        await browser.shows(f"{button}[aria-disabled=false]", "Resume")
        await browser.shows("#news", "Pixel 5 gets nothing new.")
        assert len(orders) == 1
        await playwright.expect(browser.page.locator(button)).to_be_focused()
        await playwright.expect(browser.page.locator(button)).to_have_attribute("aria-label", "Resume Pixel 5")
        await browser.shows(f"{card(node)} .state", "drained")
        await browser.shows("#fleet-summary", "1 drained")
        assert drawer.stand.entries[0]["enabled"] is False
        await browser.page.keyboard.press("Enter")
        await browser.shows(button, "Drain")
        await browser.shows("#news", "Pixel 5 is in service again.")
        assert "enabled" not in drawer.stand.entries[0]
        drawer.registry.loads[node].in_flight = 2
        await browser.page.keyboard.press("Enter")
        await browser.shows(f"{card(node)} .state", "finishes 2 answers")


async def test_an_order_that_fails_says_why_until_the_next_one(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    whole = drawer.stand.path.read_text()
    async with page_of(chromium, drawer.page()) as browser:
        button, trouble = f"{card(node)} .foot button", f"{card(node)} .foot .trouble"
        await browser.shows(button, "Drain")
        drawer.stand.path.write_text("[{]")
        await browser.page.click(button)
        await browser.shows(trouble, "cannot be changed while it is broken")
        async with browser.page.expect_response("**/api/phones"):
            pass  # another look at the phones does not take it away
        async with browser.page.expect_response("**/health"):
            pass
        await browser.shows(trouble, "cannot be changed while it is broken")
        await browser.shows(f"{button}[aria-disabled=false]", "Drain")
        drawer.stand.path.write_text(whole)
        await browser.page.click(button)
        await browser.shows(button, "Resume")
        await playwright.expect(browser.page.locator(trouble)).to_be_empty()


async def test_an_answer_from_before_an_order_does_not_turn_the_button_back(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    button, taken, go = f"{card(node)} .foot button", asyncio.Event(), asyncio.Event()

    async def keep(route: Any) -> None:
        answer = await route.fetch()
        taken.set()
        await go.wait()
        await route.fulfill(response=answer)

    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(button, "Drain")
        await browser.page.route("**/api/phones", keep)
        await taken.wait()  # it says: not drained
        await browser.page.click(button)
        await browser.shows(button, "Resume")
        await browser.page.evaluate(
            "(button) => new MutationObserver(() => { window.turned = button.textContent; })"
            ".observe(button, {childList: true})",
            await browser.page.query_selector(button),
        )
        async with browser.page.expect_response("**/api/phones"):
            go.set()
        async with browser.page.expect_response("**/api/phones"):
            pass  # the one before has been taken in
        assert await browser.page.evaluate("window.turned") is None
        await browser.page.unroute_all(behavior="wait")


async def test_nothing_moves_and_nothing_is_built_anew_each_second(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    nodes = [await drawer.add(20 + number, f"phone {number}") for number in range(4)]
    for node in nodes:
        drawer.tell(node, level=50.0, charging=True, temperature_c=30.0)
    async with page_of(chromium, drawer.page(), viewport={"width": 360, "height": 740}) as browser:
        for node in nodes:
            await browser.shows(f"{card(node)} .battery", "50 %")
        before = await browser.page.evaluate(PLACES)
        await browser.page.evaluate("document.querySelectorAll('#nodes *').forEach((one) => { one.known = true; })")
        for level in (9.5, 100.0):
            drawer.tell(nodes[1], level=level, charging=True, temperature_c=31.0)
            await browser.shows(f"{card(nodes[1])} .battery", f"{round(level)} %")
        await browser.page.click(f"{card(nodes[2])} .foot button")
        await browser.shows("#news", "gets nothing new")
        await browser.shows(f"{card(nodes[2])} .state", "drained")
        assert await browser.page.evaluate(PLACES) == before
        strangers = "[...document.querySelectorAll('#nodes *')].filter((one) => !one.known).length"
        assert await browser.page.evaluate(strangers) == 0
        assert len(await browser.page.evaluate(COLUMNS)) == 1


async def test_phones_on_a_cable_and_what_to_do_about_them(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    plugged = drawer.plug("R58")
    working = cabled("R58", None, node="R58", local_port=28001)
    drawer.adb = tracker(working, problem="there is no adb server")
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"{card('R58')} .place", "on a cable, port 28001 here · phone")
        await playwright.expect(browser.page.locator(f"{card('R58')} .foot button")).to_have_text("Drain")
        await playwright.expect(browser.page.locator("#cable")).to_be_hidden()
        drawer.adb = tracker(
            working,
            cabled("0A30", "unlock it and tap Allow", state="unauthorized"),
            cabled(MARKUP, MARKUP, name=f"{MARKUP}2", state=MARKUP),
        )
        await browser.shows("[data-serial='0A30'] .problem", "unlock it and tap Allow")
        await browser.shows("[data-serial='0A30'].bad .state", "unauthorized")
        items = browser.page.locator("#cable-phones li")
        await playwright.expect(items).to_have_count(2)
        for part, words in (("name", f"{MARKUP}2"), ("serial", MARKUP), ("state", MARKUP), ("problem", MARKUP)):
            await playwright.expect(items.nth(1).locator(f".{part}")).to_have_text(words)
        await playwright.expect(browser.page.locator("#cable-server")).to_be_hidden()
        drawer.adb = tracker(working, mode="on", problem=f"cannot start {MARKUP}")
        await browser.shows("#cable-server", f"adb: cannot start {MARKUP}")
        await playwright.expect(items).to_have_count(0)
        drawer.adb = None
        await playwright.expect(browser.page.locator("#cable")).to_be_hidden()
        await browser.shows(f"{card('R58')} .place", plugged.address)


async def test_a_trouble_of_a_moment_is_not_shown(chromium: Chromium, tmp_path: Path):
    drawer, asked = Drawer.in_folder(tmp_path), 0

    async def plugging(route: Any) -> None:
        """Another trouble with each look, as of a phone that was just plugged in."""
        nonlocal asked
        asked += 1
        drawer.adb = tracker(cabled("0A30", "it is being asked who it is" if asked % 2 else "nothing answers"))
        await route.continue_()

    made = drawer.page()
    async with page_of(chromium, made) as browser:
        await browser.page.evaluate(
            "const cable = document.getElementById('cable');"
            "new MutationObserver(() => { if (!cable.hidden) window.flashed = true; })"
            ".observe(cable, {attributes: true, subtree: true, childList: true})"
        )
        await browser.page.route("**/health", plugging)
        for _ in range(3):
            async with browser.page.expect_response("**/health"):
                pass
        assert await browser.page.evaluate("window.flashed") is None
        await browser.page.unroute_all(behavior="wait")


async def test_the_whole_drawer_can_be_read_on_any_screen(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    hot, silent = await drawer.add(20, "hot-" * 20), await drawer.add(21, "silent")
    drained, warm = await drawer.add(22, "drained"), await drawer.add(23, MARKUP)
    drawer.tell(hot, signal=-40, level=100.0, charging=False, temperature_c=46.5, thermal_status=5)
    drawer.tell(silent, ago=900, level=50.0, charging=True)
    drawer.tell(warm, level=22.0, charging=False, temperature_c=40.0, thermal_status=2)
    drawer.silence(silent)
    await drawer.joining.enable(drained, False)
    drawer.plug("R58")
    drawer.adb = tracker(cabled("0A30" * 20, "it says no " * 20), mode="on", problem="cannot be started")
    async with page_of(chromium, drawer.page(), viewport={"width": 360, "height": 740}) as browser:
        await browser.shows("#cable-phones", "it says no")
        await browser.shows(f"{card(warm)} .battery.warn", "22 %")
        for width in (1280, 768, 360):
            await browser.page.set_viewport_size({"width": width, "height": 800})
            assert await browser.page.evaluate("document.documentElement.scrollWidth") <= width
            assert await browser.page.evaluate(CRAMPED) == []
            assert len(await browser.page.evaluate(COLUMNS)) == 1
        for scheme in ("light", "dark"):
            await browser.page.emulate_media(color_scheme=scheme)
            assert await browser.page.evaluate(FAINT) == []
            await browser.page.click("#invite-open")
            await browser.shows("#invite-until", "left")
            assert await browser.page.evaluate(FAINT) == []
            assert await browser.page.evaluate(SMALL) == []
            await browser.page.click("#invite-close")
        assert await browser.page.evaluate(NAMELESS) == []
        labels = [await one.get_attribute("aria-label") for one in await browser.page.locator(".foot button").all()]
        assert len({*labels}) == len(labels) == 5
