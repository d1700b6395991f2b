"""The node's page in headless Chromium: one device, a split, a change of plan, a loading, a failure; keys; phones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gpu_node.api.access import rules_of
from gpu_node.device_fleet import DeviceFleet
from gpu_node.errors import ModelError
from gpu_node.pipeline_status import PipelineStatus
from tests.fakes.browser import Browser, Chromium, playwright
from tests.gpu_node.played_pipeline import BROKEN, CHANGING, FIRST, NAME, SPLIT, played_fleet
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import Fleet, Model, Served, serving

# The loop is the one that drives the browser of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKUP = '<img src=x onerror="window.hacked=1">'


@asynccontextmanager
async def page_of(
    chromium: Chromium, status: PipelineStatus | None = None, context: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Browser, Served]]:
    async with serving(real=True, **options) as served:
        play(served, status)
        async with chromium.opened(f"http://127.0.0.1:{served.port}/", **(context or {})) as browser:
            yield browser, served


def play(served: Served, status: PipelineStatus | None) -> None:
    runner: Any = served.host.engine.runner
    if runner is not None:
        runner.pipeline = status


async def widths(browser: Browser) -> dict[str, float]:
    """Of the segments that are shown, by device and part, as shares of the list's width."""
    script = """[...document.querySelectorAll('.stage')].flatMap((stage) => [...stage.querySelectorAll('.bar span')]
        .filter((part) => !part.hidden)
        .map((part) => [`${stage.dataset.device} ${part.className}`, parseFloat(part.style.width)]))"""
    return dict(await browser.page.evaluate(script))


async def test_a_model_on_one_device_and_a_node_that_is_gone(chromium: Chromium) -> None:
    async with page_of(chromium) as (browser, served):
        served.script.running = 1
        await browser.shows("#summary", "Answering.")
        await browser.shows(".model h3", NAME)
        await browser.shows(".model > .facts", "one device")
        await browser.shows(".stage .name", "cpu")
        await browser.shows("#figure-running", "1")
        await browser.shows("#devices .device", "cpu")
        await browser.shows("#no-events", "Nothing has happened")
        await playwright.expect(browser.page.locator(".stage")).to_have_count(1)
        await playwright.expect(browser.page.locator("details")).to_be_hidden()
        served.script.running = 0
        await browser.shows("#summary", "Ready.")
        served.stop()
        await browser.shows("#summary", "The node does not answer.")


async def test_a_split_is_a_bar_for_each_device_in_one_scale(chromium: Chromium) -> None:
    devices = played_fleet()
    async with page_of(chromium, SPLIT, devices=devices) as (browser, _):
        await browser.shows("[data-device='cpu:0'] .layers", "layers 0 to 17 · 220 MB")
        await browser.shows("[data-device='cpu:1'] .layers", "layers 18 to 29")
        await browser.shows(".stage[data-device='cpu:2'] .state", "no layers here")
        await browser.shows(".stage[data-device='cpu:0'] .amounts", "borrowed 12 MB")
        await browser.shows(".stage[data-device='cpu:1'] .amounts", "lent to others 12 MB")
        await browser.shows(".stage[data-device='cpu:0'] .facts", "82 µs a hop")
        await browser.shows(".leases", "cpu:1 lends cpu:0 12 blocks (12 MB) · granted · priority 5")
        await browser.shows(".leases", "2.00 MB of reclaimed blocks lie in host memory")
        await browser.shows(".model > .facts", "2 stages")
        found = await widths(browser)
        scale = 232.0  # the largest device and what it borrows
        assert found["cpu:0 weights"] == pytest.approx(100 * 150 / scale, abs=0.01)
        assert found["cpu:1 weights"] == pytest.approx(100 * 120 / scale, abs=0.01)
        assert found["cpu:1 lent"] == pytest.approx(100 * 12 / scale, abs=0.01) == found["cpu:0 borrowed"]
        assert sum(width for part, width in found.items() if part.startswith("cpu:0")) == pytest.approx(100, abs=0.01)
        assert sum(width for part, width in found.items() if part.startswith("cpu:2")) == pytest.approx(
            10000 / scale, abs=0.01
        )
        label = await browser.page.get_attribute(".stage[data-device='cpu:1'] .bar", "aria-label")
        assert label == (
            "cpu:1 of 180 MB, weights 120 MB, cache 26 MB, a step's room 4.00 MB, lent to others 12 MB, free 18 MB"
        )
        await browser.page.click("summary")
        await browser.shows("details", "profiled: room for 4,096 tokens")
        await browser.shows("details", "2 at once 130.5 tokens/s")
        await browser.shows("pre", "cpu:0   0-17")
        await devices_are_told(browser, devices)


async def devices_are_told(browser: Browser, devices: DeviceFleet) -> None:
    await browser.shows("#devices [data-device='cpu:1'] .state", "lost")
    await browser.shows("#devices [data-device='cpu:1'] .reason", "its process ended")
    await browser.shows("#devices [data-device='cpu:1'] .facts", "180 MB · at 0.5 of its speed")
    await browser.shows("#figure-devices", "3/4")
    await browser.shows("#events li:first-child", "cpu:1")
    await browser.shows("#events li:first-child", "was lost")
    devices.add("cpu:50MB")
    await browser.shows("#events li:first-child", "joined")
    await playwright.expect(browser.page.locator("#events li")).to_have_count(5)
    await browser.shows("#figure-devices", "4/5")


async def test_what_has_not_changed_stays_the_same_element(chromium: Chromium) -> None:
    async with page_of(chromium, SPLIT, devices=played_fleet()) as (browser, served):
        await browser.shows(".stage[data-device='cpu:1'] .state", "ready")
        await browser.page.evaluate(
            "document.querySelectorAll('.stage, .model, .event').forEach((one) => one.seen = 1)"
        )
        play(served, CHANGING)
        await browser.shows(".stage[data-device='cpu:1'] .state", "loading, 25 %")
        await browser.shows("#summary", "A new plan is taking over.")
        kept = "[...document.querySelectorAll('.stage, .model, .event')].every((one) => one.seen)"
        assert await browser.page.evaluate(kept)
        play(served, replace(SPLIT, stages=(replace(FIRST, behind_layer=30),)))
        await browser.shows("[data-device='cpu:0'] .layers", "layers 0 to 29")
        await playwright.expect(browser.page.locator(".stage")).to_have_count(3)  # cpu:1 has no layers any more
        await browser.shows(".stage[data-device='cpu:1'] .state", "lost")
        play(served, BROKEN)
        await browser.shows("#summary", "The model cannot run now.")
        await browser.shows(".model .state >> nth=0", "cannot run")
        await browser.shows(".model .error", "short by 0.10 GB")


async def test_a_loading_and_one_that_failed(chromium: Chromium) -> None:
    script = Script()
    script.load_gate.clear()
    script.load_errors = [ModelError("the disk is gone")]
    async with page_of(chromium, script=script, loaded=False) as (browser, served):
        await browser.shows("#summary", "No model is in memory.")
        await browser.shows("#no-models", "The next request brings one in.")
        loading = asyncio.create_task(served.residents.start())
        await browser.shows("#summary", "A model is being loaded.")
        served.host.read_bytes, served.host.total_bytes = 30_000_000, 120_000_000
        await browser.shows(".loading", "30 MB of 120 MB read")
        assert await browser.page.evaluate("document.querySelector('progress').position") == 0.25
        script.load_gate.set()
        await browser.shows("#summary", "The model could not be loaded.")
        await browser.shows(".model .error", "the disk is gone")
        await asyncio.gather(loading, return_exceptions=True)


async def test_markup_in_names_stays_text(chromium: Chromium) -> None:
    fleet = Fleet(models=(Model(MARKUP),))
    hostile = replace(SPLIT, stages=(replace(FIRST, device=MARKUP),), state="broken", error=MARKUP, picture=(MARKUP,))
    devices = played_fleet()
    devices.lost("cpu:0", MARKUP)
    async with page_of(chromium, hostile, fleet=fleet, devices=devices) as (browser, _):
        for selector in (".model h3", ".stage .name >> nth=0", ".model .error", "#devices", "#events", "pre"):
            await browser.shows(selector, MARKUP)
        assert await browser.page.locator("img").count() == 0


async def test_a_locked_node_asks_for_the_key(chromium: Chromium) -> None:
    async with page_of(chromium, SPLIT, rules=rules_of(("anna:s3cret",), (), ())) as (browser, _):
        await browser.shows("#key-form", "asks for an API key")
        await playwright.expect(browser.page.locator("#facts")).to_be_hidden()
        await browser.page.fill("#key", "wrong")
        await browser.page.press("#key", "Enter")
        await browser.shows("#notice", "does not know this key")
        await browser.page.fill("#key", "s3cret")
        await browser.page.press("#key", "Enter")
        await browser.shows(".model", NAME)
        await playwright.expect(browser.page.locator("#key-form")).to_be_hidden()
        assert await browser.page.evaluate("localStorage.length") == 0
        assert "s3cret" not in browser.page.url


async def test_it_fits_a_phones_screen_and_the_dark(chromium: Chromium) -> None:
    long = DeviceFleet(())
    name = "org/a-model-with-a-rather-long-name-that-somebody-gave-it-one-evening"
    screen = {"viewport": {"width": 320, "height": 700}, "color_scheme": "dark"}
    async with page_of(chromium, BROKEN, screen, fleet=Fleet(models=(Model(name),)), devices=long) as (browser, _):
        await browser.shows(".model h3", name)
        await browser.page.click("summary")
        assert await browser.page.evaluate("document.documentElement.scrollWidth") <= 320
        dark = await browser.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        await browser.page.emulate_media(color_scheme="light")
        light = await browser.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert dark != light
