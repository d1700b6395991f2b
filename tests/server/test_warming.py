"""Warming over real fake phones: what they are asked, what routing knows afterwards, and how the loop ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.backends import Backends
from server.nodes import ModelKey, Node, NodeId, NodeSpec
from server.registry import (
    FAILED_PROBES_TO_SILENT,
    NodeListed,
    NodeProbed,
    NodeUnlisted,
    ProbeFailed,
    Registry,
)
from server.warming import LOOK_SECONDS, Warming, WarmingOptions
from server.warmth import WarmthRules
from tests.fakes.manual_clock import ManualClock
from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings
from tests.server.api.gateway import until
from tests.server.scripted_nodes import list_node, report_of

A, B = FakeModel("a:1b"), FakeModel("b:1b")


class World:
    """One phone, a registry that knows it, and the loop under test."""

    def __init__(self, phone: FakePhone, rules: WarmthRules | None = None) -> None:
        self.phone, self.clock, self.registry = phone, ManualClock(), Registry()
        self.backends = Backends({})
        options = WarmingOptions(rules or WarmthRules(), load_seconds=5.0)
        self.warming = Warming(self.registry, self.backends, options, self.clock.clock)
        self.id = NodeId("kitchen")

    async def enlist(self, **changes: Any) -> None:
        spec = NodeSpec(
            self.id, "kitchen", "ollama", self.phone.host, self.phone.port, **{"warm_up": ("a:1b",), **changes}
        )
        self.registry.emit(NodeListed(spec, 0.0))
        await self.probe()

    async def probe(self) -> None:
        node = self.registry.node(self.id)
        assert node is not None
        report = await self.backends["ollama"].probe(node.spec, 5.0)
        self.registry.emit(NodeProbed(self.id, report, 0.0))

    async def look(self, seconds: float = LOOK_SECONDS) -> None:
        await self.clock.advance(seconds)

    @property
    def asked(self) -> list[Any]:
        return [seen.json for seen in self.phone.log if seen.name == "generate"]

    @property
    def resident(self) -> set[ModelKey]:
        node = self.registry.node(self.id)
        assert node is not None
        return set(node.resident)


@asynccontextmanager
async def world(rules: WarmthRules | None = None, **settings: Any) -> AsyncIterator[World]:
    async with FakePhone(PhoneSettings(**{"models": (A, B), **settings})) as phone:
        made = World(phone, rules)
        task = asyncio.create_task(made.warming.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await made.backends.aclose()


async def test_a_phone_is_given_its_model_and_routing_knows_at_once() -> None:
    async with world() as here:
        await here.enlist(keep_alive="2h")
        await here.look()
        await until(lambda: here.resident)
        assert here.resident == {"a:1b"} and here.phone.resident() == ["a:1b"]
        (body,) = here.asked
        assert body == {"model": "a:1b", "prompt": "", "keep_alive": "2h", "stream": True}
        for _ in range(5):
            await here.look()
        assert len(here.asked) == 1


async def test_without_a_keep_alive_the_phone_has_its_own() -> None:
    async with world() as here:
        await here.enlist()
        await here.look()
        await until(lambda: here.resident)
        assert "keep_alive" not in here.asked[0]


async def test_after_another_model_it_is_loaded_again_when_the_phone_is_idle() -> None:
    async with world() as here:
        await here.enlist()
        await here.look()
        await until(lambda: here.resident)
        node = here.registry.node(here.id)
        assert node is not None
        here.phone.state.runner.forget()
        await here.phone.state.runner.load(B, None, 300.0)
        await here.probe()
        await here.look()
        assert here.phone.resident() == ["b:1b"] and len(here.asked) == 1
        await here.look(300.0 + LOOK_SECONDS)
        await until(lambda: here.resident == {"a:1b"})


async def test_a_phone_that_cannot_load_is_left_in_peace_for_longer_and_longer() -> None:
    async with world() as here:
        here.phone.fail(Fault.error(500, "llama runner process has terminated"), paths="generate")
        await here.enlist()
        for count, pause in enumerate((30.0, 60.0, 120.0), 1):
            await here.look()
            await until(lambda count=count: len(here.asked) == count and here.phone.counters.in_flight == 0)
            await here.clock.settle()
            await here.look(pause - 2 * LOOK_SECONDS)
            assert len(here.asked) == count
            await here.look(LOOK_SECONDS)
        here.phone.heal()
        await here.look(240.0)
        await until(lambda: here.resident)
        load = here.registry.loads[here.id]
        assert (load.failed, load.breaker.failures) == (0, 0)  # no request was lost by it


async def test_a_phone_that_is_too_busy_loading_to_answer_a_probe_goes_on_loading() -> None:
    async with world(load_seconds=30.0) as here:
        await here.enlist()
        await here.phone.until(lambda counters: counters.requests["generate"] == 1)
        for _ in range(FAILED_PROBES_TO_SILENT - 1):
            here.registry.emit(ProbeFailed(here.id, "silent for 2 s", 1.0))
            await here.look()
        assert (here.phone.counters.in_flight, here.phone.counters.cancelled) == (1, 0)
        await here.probe()
        await here.look()
        assert here.phone.counters.requests["generate"] == 1


async def test_a_phone_that_falls_silent_under_a_loading_is_left_in_peace_for_a_while() -> None:
    async with world(load_seconds=30.0) as here:
        await here.enlist()
        await here.phone.until(lambda counters: counters.requests["generate"] == 1)
        for _ in range(FAILED_PROBES_TO_SILENT + 1):
            here.registry.emit(ProbeFailed(here.id, "silent for 2 s", 1.0))
        await here.phone.idle()
        await here.probe()
        await here.look(30.0 - LOOK_SECONDS)
        assert here.phone.counters.requests["generate"] == 1
        await here.look()
        await here.phone.until(lambda counters: counters.requests["generate"] == 2)


async def test_a_model_that_cannot_be_loaded_is_asked_for_once() -> None:
    async with world() as here:
        here.phone.fail(Fault.error(400, "this model cannot be"), paths="generate")
        await here.enlist()
        await until(lambda: len(here.asked) == 1 and here.phone.counters.in_flight == 0)
        await here.clock.settle()
        for _ in range(10):
            await here.look(1800.0)
        assert len(here.asked) == 1 and not here.phone.counters.requests["embed"]


@pytest.mark.parametrize("version", ["0.6.8", "0.24.0", "0.33.0-rc2"])
async def test_a_model_that_only_embeds_is_loaded_by_embeddings_of_nothing(version: str) -> None:
    embedder = FakeModel("a:1b", capabilities=("embedding",))
    async with world(version=version, models=(embedder, B)) as here:
        here.phone.fail(Fault.error(400, '"a:1b" does not support generate'), paths="generate")
        await here.enlist(keep_alive="2h")
        await until(lambda: here.resident)
        assert here.resident == {"a:1b"} and len(here.asked) == 1
        (body,) = [seen.json for seen in here.phone.log if seen.name == "embed"]
        assert body == {"model": "a:1b", "input": [], "keep_alive": "2h"}


async def test_a_phone_that_leaves_is_not_waited_for() -> None:
    async with world(load_seconds=30.0) as here:
        await here.enlist()
        await here.look()
        await here.phone.until(lambda counters: counters.requests["generate"] == 1)
        here.registry.emit(NodeUnlisted(here.id, 0.0))
        await here.look()
        await here.phone.idle()
        assert here.resident == set()


async def test_a_request_for_another_model_does_not_wait_for_a_loading() -> None:
    async with world(load_seconds=30.0) as here:
        await here.enlist()
        await here.phone.until(lambda counters: counters.requests["generate"] == 1)
        load = here.registry.loads[here.id]
        load.in_flight, load.in_flight_by_model = 1, {ModelKey("a:1b"): 1}
        await here.look()
        assert here.phone.counters.in_flight == 1  # it waits for the very model
        load.in_flight_by_model = {ModelKey("b:1b"): 1}
        await here.look()
        await here.phone.idle()
        await here.look(10 * LOOK_SECONDS)
        assert here.phone.counters.requests["generate"] == 1
        load.in_flight, load.in_flight_by_model = 0, {}
        await here.look()
        await here.phone.until(lambda counters: counters.requests["generate"] == 2)  # it was no failure


async def test_the_loop_ends_with_its_loadings() -> None:
    async with world(load_seconds=30.0) as here:
        await here.enlist()
        await here.look()
        await here.phone.until(lambda counters: counters.requests["generate"] == 1)
    assert here.phone.counters.cancelled == 1


async def test_off_means_off() -> None:
    async with world(WarmthRules(auto=False), models=(A,)) as here:
        await here.enlist(warm_up=None, details={"chip": "SM8550"})
        await here.look(10.0)
        assert here.asked == []
        await here.enlist(warm_up=("a:1b",), details={"chip": "SM8550"})
        await here.look()
        await until(lambda: here.resident)


async def test_a_fleet_that_needs_nothing_is_not_looked_at() -> None:
    looks = 0

    class Counted(Registry):
        def node(self, node_id: NodeId) -> Node | None:
            nonlocal looks
            looks += 1
            return super().node(node_id)

    clock, registry = ManualClock(), Counted()
    for number in range(10):
        list_node(registry, f"n{number}", report_of(resident=("qwen:1b",)), details={"chip": "x"})
    task = asyncio.create_task(Warming(registry, {}, clock=clock.clock).run())
    await clock.advance(100 * LOOK_SECONDS)
    assert looks == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
