"""Discovery as a whole, over a network that is none: what the registry is told, and what leaves the machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from gpu_node.announce import AnnounceOptions, Announcer
from gpu_node.announcement import RelayPlace, Standing
from gpu_node.identity import Identity
from server.discovery import Discovery, DiscoveryOptions
from server.nodes import NodeId, NodeStatus, ProbeReport
from server.registry import NodeGone, NodeProbed, ProbeFailed, Registry
from tests.fakes.datagram_net import FakeHost, FakeNet, times_of
from tests.fakes.manual_clock import ManualClock

TOKEN = "correct horse"


class NoBrowser:
    """mDNS that finds nothing by itself; `hint` is what it would tell."""

    def __init__(self, hint: Callable[[tuple[tuple[str, int], ...]], None], port: int) -> None:
        self.hint, self.port, self.looks, self.closed = hint, port, 0, False

    async def look(self, found: object) -> None:
        self.looks += 1

    async def close(self) -> None:
        self.closed = True


@dataclass
class Bench:
    net: FakeNet
    clock: ManualClock
    registry: Registry
    gateway: FakeHost

    def __post_init__(self) -> None:
        self.browsers: list[NoBrowser] = []
        self.announcers: list[Announcer] = []

    @property
    def nodes(self) -> dict[str, tuple[str, NodeStatus]]:
        return {node.name: (node.spec.address, node.status) for node in self.registry.fleet.nodes.values()}

    @asynccontextmanager
    async def discovering(self, mode: str = "auto", token: str | None = TOKEN) -> AsyncIterator[None]:
        def browser(hint: Callable[..., None], port: int) -> NoBrowser:
            self.browsers.append(NoBrowser(hint, port))
            return self.browsers[-1]

        others = list(self.gateway.sockets)
        options = DiscoveryOptions(mode, token, self.gateway.reach())
        discovery = Discovery(self.registry, options, self.clock.clock, browser)
        task = asyncio.create_task(discovery.run())
        await self.clock.settle()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert self.gateway.sockets == others
            assert all(each.closed or not each.looks for each in self.browsers)

    async def node(
        self,
        host: FakeHost,
        name: str = "tower",
        *,
        token: str | None = TOKEN,
        listens: str = "0.0.0.0",
        port: int = 8765,
    ) -> Announcer:
        options = AnnounceOptions(mdns=False, times=times_of(self.clock.clock), reach=host.reach(), draw=lambda: 0.0)
        identity = Identity(name, name.encode().ljust(16, b"\0"), 1 + int(self.clock.now * 1000))
        announcer = Announcer(identity, RelayPlace(listens, port), Standing, token, options)
        await announcer.start()
        self.announcers.append(announcer)
        await self.clock.settle()
        return announcer

    async def stop(self, *announcers: Announcer) -> None:
        stopping = [asyncio.create_task(each.stop()) for each in announcers]
        await self.clock.advance(0.2)
        await asyncio.gather(*stopping)


def _id(name: str = "tower") -> NodeId:
    return NodeId(name.encode().ljust(16, b"\0").hex())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    net = FakeNet()
    made = Bench(net, ManualClock(), Registry(), net.host("10.0.0.1/24"))
    yield made
    await made.stop(*made.announcers)


async def test_a_node_is_found_at_once_whoever_came_first(bench: Bench) -> None:
    await bench.node(bench.net.host("10.0.0.2/24"), "early")
    async with bench.discovering():
        assert bench.nodes == {"early": ("10.0.0.2:8765", NodeStatus.UNKNOWN)}
        await bench.node(bench.net.host("10.0.0.3/24"), "late")
        assert bench.nodes["late"] == ("10.0.0.3:8765", NodeStatus.UNKNOWN)
        assert bench.clock.now == 0.0
        assert {node.spec.kind for node in bench.registry.fleet.nodes.values()} == {"relay"}


async def test_a_node_that_says_goodbye_drains(bench: Bench) -> None:
    node = await bench.node(bench.net.host("10.0.0.2/24"))
    async with bench.discovering():
        await bench.stop(node)
        assert bench.nodes["tower"][1] is NodeStatus.DRAINING


async def test_a_node_that_died_leaves_after_a_minute_and_one_that_answers_stays(bench: Bench) -> None:
    dead, deaf = bench.net.host("10.0.0.2/24"), bench.net.host("10.0.0.3/24")
    announcers = [await bench.node(dead, "dead"), await bench.node(deaf, "deaf")]
    async with bench.discovering():
        bench.registry.emit(NodeProbed(_id("deaf"), ProbeReport("1", ()), 0.0))
        for host in (dead, deaf):
            host.sockets.clear()
        for _ in range(3):
            bench.registry.emit(ProbeFailed(_id("dead"), "timeout", 0.0))
        await bench.clock.advance(55)
        assert bench.nodes["dead"][1] is NodeStatus.SILENT
        await bench.clock.advance(10)
        assert bench.nodes["dead"][1] is NodeStatus.DRAINING
        assert bench.nodes["deaf"][1] is NodeStatus.READY
    assert len(announcers) == 2


@pytest.mark.parametrize("token", [None, "another"])
async def test_with_a_token_only_who_shares_it_joins(bench: Bench, token: str | None) -> None:
    await bench.node(bench.net.host("10.0.0.2/24"), token=token)
    async with bench.discovering():
        await bench.clock.advance(11)
        assert bench.nodes == {}


async def test_without_a_token_nothing_leaves_this_machine_and_its_own_nodes_join(bench: Bench) -> None:
    await bench.node(bench.gateway, "mine", token=None, listens="127.0.0.1")
    bench.net.carried.clear()
    async with bench.discovering(token=None):
        await bench.clock.advance(11)
        assert list(bench.nodes) == ["mine"]
        assert bench.browsers == []
        assert all(target.startswith("127.") for _, target, _, _ in bench.net.carried)


async def test_a_node_that_wants_a_token_is_named_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.node(bench.gateway, "locked", token="other")
    with caplog.at_level(logging.INFO, "server.discovery"):
        async with bench.discovering(token=None):
            await bench.clock.advance(20)
    assert bench.nodes == {}
    assert [record.getMessage() for record in caplog.records] == [
        "the node locked at 127.0.0.1 is not used: it wants a token: set POTLUCK_NODE_TOKEN to its own"
    ]


async def test_mode_on_trusts_the_network_and_says_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.node(bench.net.host("10.0.0.2/24"), token=None)
    async with bench.discovering("on", token=None):
        assert list(bench.nodes) == ["tower"]
    assert "trusts every node" in caplog.text


async def test_mode_off_opens_nothing(bench: Bench) -> None:
    await bench.node(bench.net.host("10.0.0.2/24"))
    async with bench.discovering("off"):
        assert bench.gateway.sockets == []
        await bench.clock.advance(11)
    assert bench.nodes == {}


async def test_what_mdns_tells_is_asked_and_listed_only_when_it_answers(bench: Bench) -> None:
    bench.net.routed = True
    await bench.node(bench.net.host("10.0.9.2/24"), "far")
    await bench.node(bench.net.host("10.0.8.2/24"), "stranger", token="another")
    async with bench.discovering():
        await bench.clock.advance(11)
        assert bench.nodes == {}
        (browser,) = bench.browsers
        assert browser.looks > 5
        for address in ("10.0.9.2", "10.0.8.2", "10.0.7.2"):
            browser.hint(((address, 40_001), (address, 8766)))
        await bench.clock.advance(1)
        assert bench.nodes == {"far": ("10.0.9.2:8765", NodeStatus.UNKNOWN)}
        await bench.clock.advance(40)  # its broadcasts never get here: it is asked where it was found
        bench.registry.emit(ProbeFailed(_id("far"), "timeout", 0.0))
        await bench.clock.advance(40)
        assert bench.nodes["far"][1] is NodeStatus.UNKNOWN


async def test_hints_are_followed_a_few_at_a_time(bench: Bench) -> None:
    async with bench.discovering():
        before = len(bench.net.carried)
        bench.net.routed = True
        for number in range(200):
            bench.browsers[0].hint(((f"10.1.{number}.1", 8766),))
        await bench.clock.settle()
        assert len(bench.net.carried) - before == 16


async def test_a_node_that_comes_back_from_draining_is_the_same(bench: Bench) -> None:
    host = bench.net.host("10.0.0.2/24")
    node = await bench.node(host)
    async with bench.discovering():
        await bench.stop(node)
        await bench.clock.advance(1)
        await bench.node(host, port=9000)
        assert bench.nodes == {"tower": ("10.0.0.2:9000", NodeStatus.UNKNOWN)}
        bench.registry.emit(NodeGone(_id()))
        await bench.clock.advance(1)
        assert list(bench.nodes) == ["tower"]


async def test_where_no_socket_can_be_had_the_gateway_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.gateway.refused = {("0.0.0.0", 0)}
    async with bench.discovering():
        await bench.clock.advance(1)
    assert "nodes cannot be looked for" in caplog.text


def test_the_token_does_not_show() -> None:
    assert "horse" not in repr(DiscoveryOptions("auto", TOKEN))
