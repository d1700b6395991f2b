"""From a phone's own words to its share of the work: a fake phone's `dumpsys`, a real adb server, reader, routing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from server.adb.tracker import AdbOptions, AdbTracker
from server.backends import Backends
from server.health import Health, ProbePace
from server.nodes import Node, NodeId
from server.registry import Registry
from server.rests import log_rests
from server.routing import STRATEGIES, Demand, Policy
from server.seating import Seating, SeatingLimits
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone
from tests.server.adb.lab import until

HOT, COOL = NodeId("HOTPHONE"), NodeId("COOLPHONE")
READ_SECONDS = 0.1
ANDROID_9 = "Can't find service: thermalservice\n"


class Ward:
    """A registry that follows an adb server, and who would get the next requests."""

    def __init__(self, port: int) -> None:
        self.registry = Registry()
        self.registry.listen(log_rests)
        now = asyncio.get_running_loop().time
        policy = Policy(STRATEGIES["weighted_round_robin"])
        self.seating = Seating(self.registry, policy, SeatingLimits(), now)
        self.tracker = AdbTracker(self.registry, AdbOptions("auto", port=port, read_seconds=READ_SECONDS))

    def node(self, node_id: NodeId) -> Node:
        return self.registry.fleet.nodes[node_id]

    def rests(self, node_id: NodeId) -> bool:
        node = self.registry.node(node_id)
        return node is not None and node.resting is not None

    def shares(self, requests: int = 20) -> dict[NodeId, int]:
        """Who is asked, when each answer ends before the next request comes."""
        asked: dict[NodeId, int] = {}
        for _ in range(requests):
            choice = self.seating.take(self.seating.claim("alice", 0, Demand(None, needs_memory=False), None))
            assert choice is not None
            asked[choice.seat.id] = asked.get(choice.seat.id, 0) + 1
            self.seating.give_up(choice)
        return asked


@pytest.fixture
async def hot_phone() -> AsyncIterator[FakeAdbd]:
    async with FakePhone() as ollama, FakeAdbd(HOT, ports={11434: ollama.port}) as phone:
        yield phone


@pytest.fixture
async def ward(server: RealAdbServer, hot_phone: FakeAdbd) -> AsyncIterator[Ward]:
    """Two phones on cables, both ready and read."""
    made, backends = Ward(server.port), Backends({})
    health = Health(made.registry, backends, ProbePace(0.5))
    async with FakePhone() as ollama, FakeAdbd(COOL, ports={11434: ollama.port}) as other:
        tasks = [asyncio.create_task(made.tracker.run()), asyncio.create_task(health.run())]
        try:
            for phone in (hot_phone, other):
                await server.link.connect(phone.address)
            await until(lambda: sum(node.condition is not None for node in made.registry.fleet.nodes.values()) == 2)
            await until(lambda: all(node.models for node in made.registry.fleet.nodes.values()))
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            made.seating.close()
            await backends.aclose()


async def test_a_phone_becomes_warm_and_hot_rests_cools_and_returns(
    ward: Ward, hot_phone: FakeAdbd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.rests")
    assert ward.shares() == {HOT: 10, COOL: 10}
    hot_phone.services.tell_battery(celsius=40.0)
    await until(lambda: ward.node(HOT).care.factor == 0.6)
    assert ward.shares(32) == {HOT: 12, COOL: 20}
    hot_phone.services.tell_battery(celsius=43.2)
    await until(lambda: ward.rests(HOT))
    assert ward.shares() == {COOL: 20}
    hot_phone.services.tell_battery(celsius=41.0)
    await until(lambda: ward.node(HOT).condition.temperature_c == 41.0)
    assert ward.shares() == {COOL: 20}, "between the marks it goes on resting"
    hot_phone.services.tell_battery(celsius=36.0)
    await until(lambda: not ward.rests(HOT))
    assert ward.shares() == {HOT: 10, COOL: 10}
    assert [one.getMessage() for one in caplog.records if one.name == "server.rests"] == [
        f"the phone {ward.node(HOT).name} rests: hot: 43.2 °C, rests until 39 °C",
        f"the phone {ward.node(HOT).name} works again: it last told 36.0 °C, thermal status none, charged to 80 %",
    ]


async def test_androids_verdict_and_a_low_battery_count_as_well(ward: Ward, hot_phone: FakeAdbd) -> None:
    hot_phone.services.tell_heat(3)
    await until(lambda: ward.rests(HOT))
    assert ward.shares() == {COOL: 20}
    hot_phone.services.tell_heat(1)
    hot_phone.services.tell_battery(level=12, charging=False)
    await until(lambda: ward.node(HOT).care.low and not ward.node(HOT).care.hot)
    assert ward.shares() == {COOL: 20}
    hot_phone.services.tell_battery(level=31, charging=True)
    await until(lambda: not ward.rests(HOT))
    assert ward.shares(35) == {HOT: 15, COOL: 20}, "light: three quarters"


async def test_an_android_without_a_thermal_service_is_cared_for_by_its_battery(
    ward: Ward, hot_phone: FakeAdbd
) -> None:
    hot_phone.services.dumps["thermalservice"] = ANDROID_9
    hot_phone.services.dumps["battery"] = "  level: 60\r\n  temperature: 455\r\n"
    await until(lambda: ward.rests(HOT))
    assert ward.node(HOT).resting == "hot: 45.5 °C, rests until 39 °C"
    assert ward.shares() == {COOL: 20}


async def test_words_that_mean_nothing_leave_things_as_they_were(ward: Ward, hot_phone: FakeAdbd) -> None:
    hot_phone.services.tell_battery(celsius=44.0)
    await until(lambda: ward.rests(HOT))
    told = ward.node(HOT).condition
    hot_phone.services.dumps["battery"] = "Permission Denial: can't dump BatteryService\n" + "\x00\x7f: ?\n" * 40_000
    hot_phone.services.dumps["thermalservice"] = "Permission Denial: can't dump thermalservice\n"
    log = hot_phone.services.log
    log.clear()
    await until(lambda: log.count("dumpsys thermalservice") >= 2)
    assert ward.node(HOT).condition.temperature_c == told.temperature_c
    assert ward.rests(HOT) and ward.shares() == {COOL: 20}


async def test_a_phone_that_was_unplugged_while_it_was_hot_goes_on_resting(ward: Ward, hot_phone: FakeAdbd) -> None:
    hot_phone.services.tell_battery(celsius=44.0)
    await until(lambda: ward.rests(HOT))
    await hot_phone.die()
    await until(lambda: ward.registry.node(HOT) is None)
    hot_phone.services.tell_battery(celsius=41.0)
    await hot_phone.start()
    await until(lambda: ward.registry.node(HOT) is not None and ward.node(HOT).condition is not None)
    await until(lambda: ward.node(HOT).condition.temperature_c == 41.0)
    assert ward.rests(HOT) and ward.shares() == {COOL: 20}
    hot_phone.services.tell_battery(celsius=39.0)
    await until(lambda: not ward.rests(HOT))
