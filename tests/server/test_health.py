"""Probing: when, how often, how many at once, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.errors import NodeError, NodeStalled, NodeUnreachable
from server.health import PLACES, Health, ProbePace, next_probe_at
from server.nodes import ModelCopy, NodeId, NodeSpec, NodeStatus, ProbeReport
from server.registry import NodeListed, NodeUnlisted, Registry
from tests.fakes.manual_clock import ManualClock

REPORT = ProbeReport("0.24.0", (ModelCopy("qwen:1b"),))
PACE = ProbePace()


class ScriptedBackend:
    """Answers probes as each node's script says: a report, an error, or "hang" until the time limit."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.script: dict[str, Callable[[], Any]] = {}
        self.asked: list[tuple[float, str]] = []
        self.at_once = 0
        self.most_at_once = 0

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        self.asked.append((self.clock.now, spec.id))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            outcome = self.script.get(spec.id, lambda: REPORT)()
            if outcome == "hang":
                await self.clock.sleep(timeout_seconds)
                outcome = NodeStalled("no answer", "probe")
            if isinstance(outcome, Exception):
                raise outcome
            assert isinstance(outcome, ProbeReport)
            return outcome
        finally:
            self.at_once -= 1

    def times(self, node_id: str) -> list[float]:
        return [when for when, node in self.asked if node == node_id]


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = ScriptedBackend(self.clock)
        self.registry = Registry()
        self.health = Health(self.registry, {"ollama": self.backend}, PACE, self.clock.clock, lambda: 0.0)  # type: ignore[dict-item]

    def list(self, name: str, **fields: Any) -> None:
        spec = NodeSpec(NodeId(name), name, "ollama", fields.pop("host", "10.0.0.1"), 11434, **fields)
        self.registry.emit(NodeListed(spec, self.clock.clock.wall()))

    def status(self, name: str) -> NodeStatus:
        node = self.registry.node(NodeId(name))
        assert node is not None
        return node.status


@asynccontextmanager
async def probing() -> AsyncIterator[World]:
    world = World()
    task = asyncio.create_task(world.health.run())
    await world.clock.settle()
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_good_node_is_asked_each_interval_less_the_jitter():
    assert next_probe_at(100.0, 100.1, PACE, failing=False, jitter=0.0) == 105.0
    assert next_probe_at(100.0, 100.1, PACE, failing=False, jitter=0.2) == 104.0


def test_a_failing_node_is_asked_a_second_after_the_last_start_but_never_in_the_past():
    assert next_probe_at(100.0, 100.1, PACE, failing=True, jitter=0.2) == 101.0
    assert next_probe_at(100.0, 102.0, PACE, failing=True, jitter=0.2) == 102.0


async def test_a_listed_node_is_asked_at_once_and_becomes_ready():
    async with probing() as world:
        world.list("a")
        assert world.status("a") is NodeStatus.UNKNOWN
        await world.clock.settle()
        assert world.status("a") is NodeStatus.READY
        await world.clock.advance(10.5)
        assert world.backend.times("a") == [0.0, 5.0, 10.0]


async def test_a_node_listed_before_the_start_is_asked_too():
    world = World()
    world.list("a")
    task = asyncio.create_task(world.health.run())
    await world.clock.settle()
    assert world.status("a") is NodeStatus.READY
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_node_that_starts_to_hang_is_silent_within_ten_seconds_whenever_it_does():
    async with probing() as world:
        world.list("a")
        await world.clock.advance(0.01)  # the worst moment: just after a good probe
        world.backend.script["a"] = lambda: "hang"
        await world.clock.advance(9.9)
        assert world.status("a") is NodeStatus.READY
        await world.clock.advance(0.2)
        assert world.status("a") is NodeStatus.SILENT
        assert world.backend.times("a")[:4] == [0.0, 5.0, 7.0, 8.0]


@pytest.mark.parametrize("way", [{"origin": "adb"}, {"serial": "S1", "host": "127.0.0.1"}])
async def test_a_phone_behind_adb_whose_link_is_dead_is_silent_well_within_ten_seconds(way: dict[str, Any]):
    """It stays listed and its forward takes connections; the rest of the ten seconds is for busy machines."""
    async with probing() as world:
        world.list("a", **way)
        await world.clock.advance(0.01)
        world.backend.script["a"] = lambda: "hang"
        await world.clock.advance(7.9)
        assert world.status("a") is NodeStatus.READY
        await world.clock.advance(0.2)
        assert world.status("a") is NodeStatus.SILENT
        assert world.backend.times("a")[:4] == [0.0, 3.0, 5.0, 6.0]


async def test_a_phone_with_a_serial_that_is_reached_by_wifi_is_not_asked_oftener():
    async with probing() as world:
        world.list("a", serial="S1", host="192.168.1.7")
        await world.clock.advance(10.5)
        assert world.backend.times("a") == [0.0, 5.0, 10.0]


async def test_a_thousand_nodes_that_hang_together_are_silent_within_ten_seconds():
    async with probing() as world:
        names = [f"n{number}" for number in range(1000)]
        for name in names:
            world.list(name)
        await world.clock.settle()
        assert all(world.status(name) is NodeStatus.READY for name in names)
        world.backend.script = {name: lambda: "hang" for name in names}
        await world.clock.advance(10.0)
        assert all(world.status(name) is NodeStatus.SILENT for name in names)


async def test_the_probes_of_a_node_that_waits_for_a_place_do_not_pile_up():
    async with probing() as world:
        names = [f"n{number}" for number in range(2 * PLACES[NodeStatus.UNKNOWN])]
        world.backend.script = {name: lambda: "hang" for name in names}
        for name in names:
            world.list(name)
        await world.clock.advance(12.0)
        times = [world.backend.times(name) for name in names]
        assert min(map(len, times)) > 1
        gaps = [later - sooner for asked in times for sooner, later in itertools.pairwise(asked)]
        assert min(gaps) >= PACE.retry_seconds


async def test_a_refusing_node_is_silent_sooner_and_its_restart_shows():
    async with probing() as world:
        refusal = NodeUnreachable("nobody listens")
        refusal.__cause__ = ConnectionRefusedError()
        world.list("a")
        await world.clock.settle()
        world.backend.script["a"] = lambda: refusal
        await world.clock.advance(7.1)
        node = world.registry.node(NodeId("a"))
        assert node is not None and node.status is NodeStatus.SILENT and node.refused_probe
        assert node.last_error == "nobody listens"
        world.backend.script["a"] = lambda: REPORT
        await world.clock.advance(1.0)
        assert world.status("a") is NodeStatus.READY


async def test_only_a_refused_connection_counts_as_a_sign_of_a_restart():
    async with probing() as world:
        world.backend.script["a"] = lambda: NodeStalled("slow", "probe")
        world.list("a")
        await world.clock.settle()
        node = world.registry.node(NodeId("a"))
        assert node is not None and node.failed_probes == 1 and not node.refused_probe


async def test_a_late_failure_does_not_undo_a_newer_success():
    async with probing() as world:
        world.list("a")
        await world.clock.settle()
        outcomes = iter(["hang", "hang", REPORT])
        world.backend.script["a"] = lambda: next(outcomes, REPORT)
        await world.clock.advance(8.5)  # 5 and 7 hang, 8 answers; the one of 7 fails at 9
        assert world.status("a") is NodeStatus.READY
        await world.clock.advance(1.0)
        node = world.registry.node(NodeId("a"))
        assert node is not None and node.failed_probes == 0 and node.last_error is None


async def test_hanging_nodes_do_not_delay_good_ones():
    async with probing() as world:
        for number in range(400):
            world.backend.script[f"dead{number}"] = lambda: "hang"
            world.list(f"dead{number}")
        world.list("good")
        await world.clock.advance(30.0)
        world.backend.asked.clear()
        await world.clock.advance(20.0)
        gaps = [later - sooner for sooner, later in itertools.pairwise(world.backend.times("good"))]
        assert gaps and max(gaps) <= PACE.interval_seconds
        assert world.backend.most_at_once <= PLACES[NodeStatus.UNKNOWN] + PLACES[NodeStatus.SILENT] + 1


async def test_the_second_round_of_a_large_fleet_is_spread():
    draws = iter(number / 100 for number in range(100))
    world = World()
    world.health = Health(
        world.registry,
        {"ollama": world.backend},  # type: ignore[dict-item]
        PACE,
        world.clock.clock,
        lambda: next(draws, 0.5),
    )
    for number in range(100):
        world.list(f"n{number}")
    task = asyncio.create_task(world.health.run())
    await world.clock.advance(5.0)
    second = sorted(world.backend.times(f"n{number}")[1] for number in range(100))
    assert second[0] < 1.5 and second[-1] == 5.0 and len(set(second)) == 100
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_disabled_node_is_left_alone_until_it_is_enabled():
    async with probing() as world:
        world.list("a", enabled=False)
        await world.clock.advance(20.0)
        assert world.backend.asked == []
        world.list("a")
        await world.clock.settle()
        assert world.status("a") is NodeStatus.READY


async def test_a_node_with_a_new_address_is_asked_there_at_once_and_its_old_answer_is_dropped():
    async with probing() as world:
        world.backend.script["a"] = lambda: "hang"
        world.list("a", host="10.0.0.1")
        await world.clock.settle()
        world.backend.script["a"] = lambda: REPORT
        world.list("a", host="10.0.0.2")
        await world.clock.settle()
        await world.clock.advance(2.5)  # the probe of the old address fails now
        node = world.registry.node(NodeId("a"))
        assert node is not None and node.status is NodeStatus.READY and node.failed_probes == 0


async def test_an_unlisted_node_leaves_at_once_when_it_does_nothing():
    async with probing() as world:
        world.list("a")
        await world.clock.settle()
        world.registry.emit(NodeUnlisted(NodeId("a"), 0.0))
        await world.clock.settle()
        assert world.registry.node(NodeId("a")) is None
        world.backend.asked.clear()
        await world.clock.advance(20.0)
        assert world.backend.asked == []


async def test_a_draining_node_stays_until_its_last_request_has_ended():
    async with probing() as world:
        world.list("a")
        await world.clock.settle()
        load = world.registry.loads[NodeId("a")]
        load.in_flight = 1
        world.registry.emit(NodeUnlisted(NodeId("a"), 0.0))
        await world.clock.advance(60.0)
        assert world.status("a") is NodeStatus.DRAINING
        load.in_flight = 0
        await world.clock.advance(0.5)
        assert world.registry.node(NodeId("a")) is None


async def test_a_draining_node_that_is_listed_again_stays():
    async with probing() as world:
        world.list("a")
        await world.clock.settle()
        world.registry.loads[NodeId("a")].in_flight = 1
        world.registry.emit(NodeUnlisted(NodeId("a"), 0.0))
        await world.clock.advance(1.0)
        world.list("a")
        world.registry.loads[NodeId("a")].in_flight = 0
        await world.clock.advance(10.0)
        assert world.status("a") is NodeStatus.READY


async def test_a_probe_that_breaks_is_a_failed_probe_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture):
    async with probing() as world:
        world.backend.script["a"] = lambda: KeyError("a bug")
        world.list("a")
        await world.clock.settle()
        node = world.registry.node(NodeId("a"))
        assert node is not None and "a bug" in (node.last_error or "")
        world.backend.script["a"] = lambda: REPORT
        await world.clock.advance(1.1)
        assert world.status("a") is NodeStatus.READY
    assert "the probe of a broke" in caplog.text


async def test_probes_leave_the_breaker_alone():
    async with probing() as world:
        world.list("a")
        await world.clock.settle()
        breaker = world.registry.loads[NodeId("a")].breaker
        world.backend.script["a"] = lambda: NodeError("no")
        await world.clock.advance(30.0)
        assert world.registry.loads[NodeId("a")].breaker is breaker
