"""Others at the same adb server: a second gateway, one that was killed, and the phone's own way over the network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from server.adb.plan import Forward
from server.adb.ports import preferred_port
from server.nodes import NodeId, NodeSpec, NodeStatus, ProbeReport
from server.registry import NodeListed, NodeProbed, ProbeFailed, Registry
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone
from tests.fakes.ports import own_serial
from tests.server.adb.lab import following, following_server, until, until_ports

SERIAL = own_serial("NEIGHBOUR")
OURS = preferred_port(SERIAL)


@pytest.fixture
async def phone(server: RealAdbServer, ollama: FakePhone) -> AsyncIterator[FakeAdbd]:
    async with FakeAdbd(SERIAL, ports={11434: ollama.port}) as adbd:
        yield adbd


def is_ready(registry: Registry, node_id: str) -> bool:
    node = registry.node(NodeId(node_id))
    return node is not None and node.status is NodeStatus.READY


async def test_two_gateways_with_other_entries_do_not_take_each_others_forwards_away(
    server: RealAdbServer, phone: FakeAdbd, unused_tcp_port: int
) -> None:
    async with (
        following_server(server) as plain,
        following_server(server) as other,
    ):
        other.enter(NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", unused_tcp_port, serial=SERIAL))
        await plain.plug(phone)
        await until(lambda: plain.ready() == {SERIAL} and other.ready() == {"shelf"})
        # The gateway without an entry has a forward of its own, or has found the other's before it made one.
        await until_ports(
            server, lambda now: set(now.get(phone.address, [])) == {plain.node(SERIAL).spec.port, unused_tcp_port}
        )
        wanted = {plain.node(SERIAL).spec.port, unused_tcp_port}
        assert wanted <= {OURS, unused_tcp_port}
        for number in range(4):  # each is a reason for both to look again
            for one in (plain, other):
                one.enter(NodeSpec(NodeId(f"x{number}"), f"x{number}", "ollama", "10.9.9.9", 11434, enabled=False))
            await asyncio.sleep(0.3)
            assert {each.local_port for each in await server.link.forwards()} == wanted
        assert is_ready(plain.registry, SERIAL) and is_ready(other.registry, "shelf")


async def test_two_gateways_share_a_forward_and_the_one_that_stays_has_it_again(
    server: RealAdbServer, phone: FakeAdbd
) -> None:
    async with (
        following_server(server) as stays,
    ):
        async with following_server(server) as leaves:
            await stays.plug(phone)
            await until(lambda: stays.ready() == leaves.ready() == {SERIAL})
            assert await stays.local_ports() == {phone.address: [OURS]}
        await stays.until_ports({phone.address: [OURS]})
        await until(lambda: stays.ready() == {SERIAL})


@pytest.mark.parametrize("attempt", [0, 1])
async def test_what_a_killed_gateway_left_is_used_and_taken_away_at_the_end(
    server: RealAdbServer, phone: FakeAdbd, attempt: int
) -> None:
    registry = Registry()
    await server.link.connect(phone.address)
    left = Forward(phone.address, preferred_port(SERIAL, attempt))
    await server.link.create(left)
    async with following(registry, server.port):
        await until(lambda: is_ready(registry, SERIAL))
        # One that was looked at before its phone had said that it serves was stale, and the usual one was made.
        (used,) = await server.link.forwards()
        assert used in (left, Forward(phone.address, OURS))
        assert registry.node(NodeId(SERIAL)).spec.port == used.local_port
    assert await server.link.forwards() == ()


async def test_a_phone_that_joined_over_the_network_counts_once_and_the_cable_serves_while_that_is_lost(
    server: RealAdbServer, phone: FakeAdbd
) -> None:
    """Nobody is at that address here, so that what probes find is told by hand."""
    registry = Registry()
    async with following(registry, server.port, probes=False) as tracker:
        phone.services.addresses = ["192.168.1.7"]
        kitchen = NodeSpec(NodeId("kitchen"), "kitchen", "ollama", "192.168.1.7", 11434)
        registry.emit(NodeListed(kitchen, 0.0))
        await server.link.connect(phone.address)
        await until(lambda: [one["node"] for one in tracker.status()["phones"]] == ["kitchen"])
        assert set(registry.fleet.nodes) == {"kitchen"} and await server.link.forwards() == ()

        for _ in range(3):
            registry.emit(ProbeFailed(kitchen.id, "no answer", 0.0))
        await until(lambda: SERIAL in registry.fleet.nodes)
        assert await server.link.forwards() == (Forward(phone.address, OURS),)

        registry.emit(NodeProbed(kitchen.id, ProbeReport("0.31.1", ()), 0.0))
        await until(lambda: registry.node(NodeId(SERIAL)).status is NodeStatus.DRAINING)
        await until(lambda: [one["node"] for one in tracker.status()["phones"]] == ["kitchen"])


async def test_a_phone_that_rests_does_so_by_whichever_way_it_is_reached(
    server: RealAdbServer, phone: FakeAdbd
) -> None:
    registry = Registry()
    async with following(registry, server.port, probes=False):
        phone.services.addresses = ["192.168.1.7"]
        phone.services.tell_battery(celsius=44.0)
        kitchen, cable = NodeId("kitchen"), NodeId(SERIAL)
        registry.emit(NodeListed(NodeSpec(kitchen, "kitchen", "ollama", "192.168.1.7", 11434), time.time()))
        await server.link.connect(phone.address)
        await until(lambda: registry.node(kitchen).care.hot)

        phone.services.tell_battery(celsius=41.0)  # between the marks
        for _ in range(3):
            registry.emit(ProbeFailed(kitchen, "no answer", time.time()))
        await until(lambda: registry.node(cable) is not None and registry.node(cable).condition is not None)
        await until(lambda: registry.node(cable).condition.temperature_c == 41.0)
        assert registry.node(cable).care.hot
