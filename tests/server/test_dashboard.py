"""The page in headless Chromium: the fleet live, a conversation as it is told, keys, errors, nothing foreign."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.api.pipeline import PIPELINE_PATH
from server.backends.relay_split import split_record
from server.errors import NoNodes
from server.exchange import NodeShare, Queued, Started, Token
from server.nodes import NodeId, ResidentModel
from server.registry import NodeGone, NodeListed, NodeProbed, ProbeFailed
from tests.fakes.browser import Chromium, playwright
from tests.fakes.phone import FakePhone, PhoneSettings
from tests.server.api.gateway import MODEL, fleet, gateway, report, spec
from tests.server.api.scripted_dispatch import DONE, ScriptedDispatch, Step, done, failing, whole
from tests.server.api.scripted_operations import ScriptedOperations
from tests.server.dashboard_page import MARKUP, page_of
from tests.server.live_gateway import live_gateway
from wire.messages_stats import EventRecord, PipelineRecord, ResidentRecord, StageRecord, Stats

# The loop is the one that drives the browser of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")
MB = 1_000_000


async def test_the_fleet_is_shown_live(chromium: Chromium):
    registry = fleet((spec("kitchen"), report(MODEL)), (spec("attic"), report("other:1b")))
    registry.loads[NodeId("kitchen")].tokens_per_second = 9.5
    async with page_of(chromium, gateway(registry=registry)) as browser:
        await browser.shows("#summary", "Everything is ready.")
        await browser.shows("[data-node=kitchen]", "9.5 tokens/s")
        await browser.shows("[data-node=kitchen] .state", "free")
        await browser.shows("[data-node=attic] .models", "other:1b")
        await browser.shows("#figure-nodes", "2/2")
        many = report(*(f"model-{index}:1b" for index in range(20)), resident=(ResidentModel("model-15:1b", 4096),))
        registry.emit(NodeProbed(NodeId("attic"), many, 1_500.0))
        await browser.shows("[data-node=attic] .models li:last-child", "and 13 more")
        await playwright.expect(browser.page.locator("[data-node=attic] .models li")).to_have_count(8)
        await browser.shows("[data-node=attic] .models .resident:first-child", "model-15:1b, in memory")
        registry.loads[NodeId("kitchen")].in_flight = 1
        for moment in range(3):
            registry.emit(ProbeFailed(NodeId("attic"), "no route to the attic", 2_000.0 + moment))
        await browser.shows("[data-node=kitchen] .state", "busy")
        await browser.shows("[data-node=attic] .state", "does not answer")
        await browser.shows("[data-node=attic] .error", "no route to the attic")
        await browser.shows("#figure-nodes", "1/2")
        await browser.shows("#summary", "Some nodes are missing or resting")
        await browser.page.route("**/health", lambda route: route.abort())
        await browser.shows("#summary", "The gateway does not answer.")
        await browser.shows("#fleet-summary", "As it was at")
        await browser.page.unroute_all(behavior="wait")


async def test_of_a_large_fleet_those_of_one_kind_are_shown(chromium: Chromium):
    registry = fleet(*((spec(f"n{number}"), report(MODEL)) for number in range(12)))
    async with page_of(chromium, gateway(registry=registry)) as browser:
        cards, only = browser.page.locator(".node"), browser.page.get_by_label("Show")
        await playwright.expect(cards).to_have_count(12)
        await playwright.expect(only).to_be_hidden()  # so few are seen at a look
        registry.emit(NodeListed(spec("n12"), 1_000.0))
        await only.select_option("in trouble")
        await playwright.expect(cards).to_have_count(1)
        await browser.shows("[data-node=n12] .state", "not asked yet")
        await playwright.expect(browser.page.locator("#no-nodes")).to_be_hidden()
        registry.emit(NodeProbed(NodeId("n12"), report(MODEL), 1_001.0))
        await browser.shows("#no-nodes", "None is in trouble now.")
        for moment in range(3):
            registry.emit(ProbeFailed(NodeId("n7"), "no route", 2_000.0 + moment))
        await browser.shows("[data-node=n7] .state", "does not answer")
        await playwright.expect(cards).to_have_count(1)
        await only.select_option("in service")
        await playwright.expect(cards).to_have_count(12)
        registry.emit(NodeGone(NodeId("n7")))
        await playwright.expect(only).to_be_hidden()
        await playwright.expect(cards).to_have_count(12)


def split_node(**changes: Any) -> dict[str, Any]:
    """What a node tells of a model over two devices and of a third without layers."""
    stages = (
        StageRecord(MODEL, 0, "cpu:0", "cpu", "running", 0, 18, 150 * MB, 40 * MB, 5 * MB, 0, 12 * MB, 220 * MB),
        StageRecord(MODEL, 1, "cpu:1", "cpu", "ready", 18, 30, 120 * MB, 26 * MB, 4 * MB, 12 * MB, 0, 180 * MB),
        StageRecord(MODEL, 2, "cpu:2", "cpu", "present", budget_bytes=100 * MB),
    )
    pipeline = PipelineRecord(MODEL, "running", 2, depth=2, leases=1, lent_bytes=12 * MB)
    events = (EventRecord(1_900_000_000.0, "cpu:2", "joined", "100 MB"),)
    resident = ResidentRecord(MODEL, "ready", 2048, 300 * MB, 66 * MB, 8)
    told = Stats(residents=(resident,), pipelines=(replace(pipeline, **changes),), events=events, stages=stages)
    return split_record(told)


async def test_a_split_model_is_shown_in_its_nodes_card(chromium: Chromium):
    path = ("kitchen", PIPELINE_PATH)
    operations = ScriptedOperations({path: split_node()})
    registry = fleet((spec("kitchen"), report(MODEL, gpu_node=True)), (spec("attic"), report("other:1b")))
    async with page_of(chromium, gateway(registry=registry, operations=operations)) as browser:
        await browser.shows("[data-node=kitchen] .split-model .place", f"{MODEL} · 2 stages · 2 steps at once")
        await browser.shows("[data-device='cpu:0'] .layers", "layers 0 to 17 · 220 MB")
        await browser.shows("[data-device='cpu:0'] .amounts", "borrowed 12 MB")
        await browser.shows("[data-device='cpu:1'] .amounts", "lent to others 12 MB")
        await browser.shows("[data-device='cpu:1'] .state", "ready")
        await browser.shows("[data-device='cpu:2'] .state", "no layers here")
        await browser.shows("[data-node=kitchen] .events", "cpu:2 joined: 100 MB")
        await playwright.expect(browser.page.locator("[data-node=attic] .splits")).to_be_hidden()
        await browser.page.evaluate("document.querySelectorAll('.stage').forEach((one) => one.seen = 1)")
        operations.said[path] = split_node(state="broken", error=MARKUP)
        await browser.shows("[data-node=kitchen] .split-model .place", "cannot run")
        await browser.shows("[data-node=kitchen] .split-model .error", MARKUP)
        assert await browser.page.evaluate("[...document.querySelectorAll('.stage')].every((one) => one.seen)")
        await browser.page.set_viewport_size({"width": 360, "height": 740})
        assert await browser.page.evaluate("document.documentElement.scrollWidth") <= 360
        operations.said[path] = {"models": {MODEL: {"split": True, "stages": "two"}}, "devices": [], "events": []}
        await playwright.expect(browser.page.locator("[data-node=kitchen] .splits")).to_be_hidden()
        await browser.shows("#summary", "Everything is ready.")
    assert {name for name, _ in operations.asked} == {"kitchen"}


async def test_tokens_are_shown_as_they_arrive(chromium: Chromium):
    first, second = asyncio.Event(), asyncio.Event()
    script: list[Step] = [[Started("miss")], [Queued(2)], first, [Token("Zażółć")], second, [Token(" 漢字 <b>")]]
    shares = (NodeShare("attic", 1, "first"), NodeShare("kitchen", 2, "raw"))
    made = gateway(ScriptedDispatch([*script, [done(nodes=shares)]]))
    async with page_of(chromium, made) as browser:
        await browser.ask("Jakie są zalety modeli działających offline?")
        await browser.shows("#thread .question", "Jakie są zalety")
        await browser.shows("#thread .facts", "Waiting, place 2.")
        first.set()
        await browser.shows("#thread .told", "Zażółć")
        await playwright.expect(browser.page.locator("#thread .told")).to_have_text("Zażółć")
        second.set()
        await playwright.expect(browser.page.locator("#thread .told")).to_have_text("Zażółć 漢字 <b>")
        for words in ("kitchen", "6.0 tokens/s", "3 tokens", "told by attic, then kitchen"):
            await browser.shows("#thread .facts", words)


async def test_the_second_question_brings_the_conversation_along(chromium: Chromium):
    made = gateway(ScriptedDispatch(whole("Par", "is")))
    async with page_of(chromium, made) as browser:
        await browser.shows("#model", MODEL)
        await browser.page.select_option("#model", MODEL)
        await browser.ask("Capital of France?")
        await browser.shows("#thread .facts", "kitchen")
        await browser.page.fill("#prompt", "Sure?")
        await browser.page.press("#prompt", "Enter")
        await playwright.expect(browser.page.locator("#thread .facts")).to_have_count(2)
        await playwright.expect(browser.page.locator("#thread .facts").nth(1)).to_contain_text("kitchen")
        first, second = made.answer().asked
        assert (first.model, second.model) == (MODEL, MODEL)
        assert [(message["role"], message["content"]) for message in second.messages] == [
            ("user", "Capital of France?"),
            ("assistant", "Paris"),
            ("user", "Sure?"),
        ]
        await browser.page.click("#fresh")
        await playwright.expect(browser.page.locator("#thread article")).to_have_count(0)


async def test_stop_stops_the_work_too(chromium: Chromium):
    made = gateway(ScriptedDispatch([[Started("miss")], [Token("Par")], asyncio.Event(), [DONE]]))
    async with page_of(chromium, made) as browser:
        await browser.ask("hi")
        await browser.shows("#thread .told", "Par")
        await browser.page.click("#stop")
        await browser.shows("#thread .facts", "Stopped.")
        for _ in range(6000):
            if made.answer().abandoned:
                break
            await asyncio.sleep(0.01)
        assert made.answer().abandoned == 1


@pytest.mark.parametrize("told", [(), ("Par",)])
async def test_errors_are_shown_in_words(chromium: Chromium, told: tuple[str, ...]):
    made = gateway(ScriptedDispatch(failing(NoNodes("nobody is there", hint="wake a phone"), *told)))
    async with page_of(chromium, made) as browser:
        await browser.ask("hi")
        await browser.shows("#thread .trouble", "nobody is there")
        await browser.shows("#thread .trouble", "wake a phone")
        await playwright.expect(browser.page.locator("#send")).to_be_enabled()


async def test_markup_from_nodes_and_models_stays_text(chromium: Chromium):
    registry = fleet((spec("evil", name=MARKUP), report(MARKUP)))
    node = registry.loads[NodeId("evil")]
    node.last_error, node.in_flight = MARKUP, 1
    script: list[Step] = [[Started("miss")], [Token("", thinking=MARKUP), Token(MARKUP)], [done(node=MARKUP)]]
    async with page_of(chromium, gateway(ScriptedDispatch(script), registry)) as browser:
        await browser.shows(".node .name", MARKUP)
        await browser.shows(".node .models", MARKUP)
        await browser.shows(".node .error", MARKUP)
        await browser.ask(MARKUP)
        for part in ("question", "thinking", "told", "facts"):
            await browser.shows(f"#thread .{part}", MARKUP)
        assert await browser.page.locator("img").count() == 0


async def test_a_locked_gateway_asks_for_the_key(chromium: Chromium):
    async with page_of(chromium, gateway(api_keys="anna:s3cret")) as browser:
        await browser.shows("#key-form", "asks for an API key")
        await browser.page.fill("#key", "wrong")
        await browser.page.press("#key", "Enter")
        await browser.shows("#notice", "does not know this key")
        await playwright.expect(browser.page.locator("#key")).to_be_focused()
        await browser.page.fill("#key", "s3cret")
        await browser.page.press("#key", "Enter")
        await playwright.expect(browser.page.locator("#prompt")).to_be_focused()
        await browser.shows("[data-node=kitchen]", "kitchen")
        await playwright.expect(browser.page.locator("#key-form")).to_be_hidden()
        await browser.ask("hi")
        await browser.shows("#thread .told", "Paris.")
        assert await browser.page.evaluate("localStorage.length") == 0
        assert await browser.page.evaluate("sessionStorage.getItem('potluck-key')") == "s3cret"
        assert "s3cret" not in browser.page.url


async def test_it_fits_a_phones_screen_and_the_dark(chromium: Chromium):
    name = "a-phone-with-a-rather-long-name-that-somebody-gave-it-one-evening"
    registry = fleet((spec("long", name=name), report(*(f"model-{index}:1.5b-instruct-q4_K_M" for index in range(6)))))
    made = gateway(ScriptedDispatch(whole("word" * 100)), registry)
    async with page_of(chromium, made, viewport={"width": 360, "height": 740}, color_scheme="dark") as browser:
        await browser.shows(".node", name)
        await browser.ask("x" * 300)
        await browser.shows("#thread .facts", "kitchen")
        assert await browser.page.evaluate("document.documentElement.scrollWidth") <= 360
        dark = await browser.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        await browser.page.emulate_media(color_scheme="light")
        light = await browser.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert dark != light


async def test_a_broken_fleet_file_and_an_empty_fleet_are_told(chromium: Chromium, tmp_path: Path):
    async with live_gateway(tmp_path) as live, chromium.opened(live.address) as browser:
        await browser.shows("#no-nodes", "potluck phones invite")
        (tmp_path / "phones.json").write_text("[{]")
        await browser.shows("#notice", "line 1, column")


async def test_the_page_over_the_whole_gateway(chromium: Chromium, tmp_path: Path):
    settings = PhoneSettings(tokens_per_second=40)
    async with (
        FakePhone(settings) as phone,
        live_gateway(tmp_path, phone) as live,
        chromium.opened(live.address) as browser,
    ):
        await browser.shows(".node .name", "phone-0")
        await browser.ask("Tell me about the sea.")
        await browser.shows("#thread .facts", "phone-0")
        await browser.shows("#thread .facts", "tokens/s")
        await browser.shows(".node .models .resident", "smollm2:135m")
