"""Looking for nodes: who is asked, who is believed, how soon a lost answer is asked for again."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from tests.fakes.datagram_net import FakeHost, FakeNet, FakeSocket, times_of
from tests.fakes.delay_proxy import DelayProxy
from tests.fakes.manual_clock import ManualClock
from tests.transport.ports import free_udp_port
from transport.beacons import MOST_FOUND, Prober, Reach, discover, next_probe_pause
from transport.datagrams import DatagramSocket, Source
from transport.found import Found
from wire.beacon import SKEW_MS, Address, Announcement, Probe, pack_beacon, unpack_beacon

TOKEN = "correct horse"
NOW_MS = 1_800_000_000_000


class Node:
    """Answers every probe of its host, as simply as can be."""

    def __init__(self, host: FakeHost, number: int = 1, token: str | None = TOKEN, bound: str = "0.0.0.0") -> None:
        self.host, self.token, self.serial = host, token, 0
        self.node_id = number.to_bytes(16, "big")
        self.probes: list[Probe] = []
        self.socket: FakeSocket = host.open(bound, 8766, self.hear)

    def hear(self, datagram: bytes, source: Source) -> None:
        try:
            beacon, _ = unpack_beacon(datagram, self.token)
        except Exception:
            return
        if isinstance(beacon, Probe) and beacon.nonce not in [probe.nonce for probe in self.probes]:
            self.probes.append(beacon)
            source.answer(
                self.says(self.host.address_on(source.host) or self.host.interfaces[1].address, answers=beacon.nonce)
            )

    def says(self, host: str, **changes: object) -> bytes:
        self.serial += 1
        said = Announcement(self.node_id, 1, self.serial, NOW_MS, "tower", (Address(host, 8765),))
        return pack_beacon(dataclasses.replace(said, **changes), self.token)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def _prober(host: FakeHost, clock: ManualClock, token: str | None = TOKEN, network: bool = True) -> tuple[Prober, list]:
    found: list[Found] = []
    prober = Prober(token, found.append, host.reach(network=network), times=times_of(clock.clock))
    prober.open()
    return prober, found


async def test_every_network_of_the_host_is_asked(clock: ManualClock) -> None:
    net = FakeNet()
    for address, number in (("10.0.0.2/24", 1), ("192.168.1.2/24", 2)):
        Node(net.host(address), number)
    prober, found = _prober(net.host("10.0.0.1/24", "192.168.1.1/24"), clock)
    prober.probe()
    await clock.settle()
    assert {(one.source, one.signed, one.source_port) for one in found} == {
        ("10.0.0.2", True, 8766),
        ("192.168.1.2", True, 8766),
    }
    assert [one.seconds for one in found] == [0.0, 0.0]


async def test_nodes_of_this_machine_are_found_all_of_them(clock: ManualClock) -> None:
    net = FakeNet()
    here = net.host("10.0.0.1/24")
    Node(here, 1)
    Node(here, 2)
    prober, found = _prober(here, clock, network=False)
    prober.probe()
    await clock.settle()
    assert sorted(one.announcement.node_id[-1] for one in found) == [1, 2]
    assert {one.source for one in found} == {"127.0.0.1"}
    assert all(host.startswith("127.") for _, host, _, _ in net.carried)


@pytest.mark.parametrize("token", [None, "another"])
async def test_a_stranger_is_not_heard_by_who_has_a_token(clock: ManualClock, token: str | None) -> None:
    net = FakeNet()
    stranger = Node(net.host("10.0.0.2/24"), token=token)
    prober, found = _prober(net.host("10.0.0.1/24"), clock)
    prober.listen()
    prober.probe()
    stranger.socket.send(stranger.says("10.0.0.2"), "10.0.0.255", 8766)
    await clock.settle()
    assert found == []


async def test_without_a_token_everybody_is_heard_and_nobody_vouched_for(clock: ManualClock) -> None:
    net = FakeNet()
    nodes = [Node(net.host("10.0.0.2/24"), 1, token=None), Node(net.host("10.0.0.3/24"), 2, token=TOKEN)]
    prober, found = _prober(net.host("10.0.0.1/24"), clock, token=None)
    prober.listen()
    prober.probe()
    nodes[1].socket.send(nodes[1].says("10.0.0.3"), "10.0.0.255", 8766)
    await clock.settle()
    assert sorted((one.source, one.signed) for one in found) == [("10.0.0.2", False), ("10.0.0.3", False)]


async def test_what_nobody_asked_for_is_heard_once_on_every_network(clock: ManualClock) -> None:
    net = FakeNet()
    node = Node(net.host("10.0.0.2/24"))
    here = net.host("10.0.0.1/24")
    prober, found = _prober(here, clock)
    prober.listen()
    prober.listen()
    said = node.says("10.0.0.2")
    for _ in range(2):
        node.socket.send(said, "10.0.0.255", 8766)
    await clock.settle()
    assert [(one.source, one.seconds) for one in found] == [("10.0.0.2", None)]
    here.interfaces = here.interfaces[:1]  # the cable is pulled
    prober.listen()
    assert [socket.host for socket in here.sockets if socket.port == 8766] == ["127.255.255.255"]
    prober.close()
    assert here.sockets == []


async def test_an_interface_that_comes_later_is_asked_too(clock: ManualClock) -> None:
    net = FakeNet()
    Node(net.host("10.0.0.2/24"))
    here = net.host("10.0.0.1/24")
    whole, here.interfaces = here.interfaces, here.interfaces[:1]
    prober, found = _prober(here, clock)
    prober.probe()
    await clock.settle()
    assert found == []
    here.interfaces = whole
    prober.probe()
    await clock.settle()
    assert len(found) == 1


async def test_an_answer_to_us_counts_whatever_the_nodes_clock_says_and_nothing_else_of_it(clock: ManualClock) -> None:
    net = FakeNet()
    node = Node(net.host("10.0.0.2/24"))
    prober, found = _prober(net.host("10.0.0.1/24"), clock)
    prober.listen()
    clock.wall_start += SKEW_MS / 1000 + 60
    node.socket.send(node.says("10.0.0.2"), "10.0.0.255", 8766)
    await clock.settle()
    assert found == []
    prober.probe()
    await clock.settle()
    assert len(found) == 1


async def test_an_answer_that_was_kept_is_believed_no_more_than_an_announcement(clock: ManualClock) -> None:
    net = FakeNet()
    node = Node(net.host("10.0.0.2/24"))
    prober, found = _prober(net.host("10.0.0.1/24"), clock)
    prober.listen()
    prober.probe()
    await clock.settle()
    kept = node.says("10.0.0.2", answers=node.probes[0].nonce)
    node.socket.send(node.says("10.0.0.2", incarnation=2), "10.0.0.255", 8766)
    await clock.advance(6)
    node.socket.send(kept, "10.0.0.255", 8766)
    await clock.settle()
    assert [one.announcement.incarnation for one in found] == [1, 2]


async def test_garbage_of_many_sources_does_not_hide_a_node(clock: ManualClock) -> None:
    net = FakeNet()
    node = Node(net.host("10.0.0.2/24"))
    host = net.host("10.0.0.1/24")
    prober, found = _prober(host, clock)
    prober.listen()
    heard = next(one for one in host.sockets if one.host == "10.0.0.255")
    for number in range(3000):
        heard.deliver(b"PL\x01\x82" + bytes(80), Source(f"10.0.1.{number}", 1, heard))  # type: ignore[arg-type]
    node.socket.send(node.says("10.0.0.2"), "10.0.0.255", 8766)
    await clock.settle()
    assert len(found) == 1


async def test_one_source_cannot_keep_us_busy(clock: ManualClock) -> None:
    net = FakeNet()
    loud = Node(net.host("10.0.0.2/24"))
    prober, found = _prober(net.host("10.0.0.1/24"), clock)
    prober.listen()
    for _ in range(1000):
        loud.socket.send(loud.says("10.0.0.2"), "10.0.0.255", 8766)
    await clock.settle()
    assert len(found) == 100


async def test_several_subnets_are_not_reached_but_an_address_is(clock: ManualClock) -> None:
    net = FakeNet(routed=True)
    Node(net.host("10.0.9.2/24"))
    reach = net.host("10.0.0.1/24").reach()

    async def look(places: list[tuple[str, int]]) -> list[str]:
        looking = asyncio.create_task(discover(TOKEN, places=places, reach=reach, times=times_of(clock.clock)))
        await clock.advance(1.5)
        return [one.source for one in await looking]

    assert await look([]) == []
    assert await look([("10.0.9.2", 8766)]) == ["10.0.9.2"]


async def test_enough_is_enough_and_a_second_is_the_end(clock: ManualClock) -> None:
    net = FakeNet()
    for number in range(1, 4):
        Node(net.host(f"10.0.0.{number + 1}/24"), number)
    reach = net.host("10.0.0.1/24").reach()
    times = times_of(clock.clock)
    quick = asyncio.create_task(discover(TOKEN, enough=2, reach=reach, times=times))
    await clock.settle()
    assert len(await quick) >= 2
    assert clock.now == 0.0
    slow = asyncio.create_task(discover(TOKEN, seconds=0.7, reach=reach, times=times))
    await clock.advance(0.69)
    assert not slow.done()
    await clock.advance(0.02)
    assert len(await slow) == 3
    assert clock.sleeping == []


async def test_a_node_that_leaves_meanwhile_is_not_found(clock: ManualClock) -> None:
    net = FakeNet()
    node = Node(net.host("10.0.0.2/24"))
    here = net.host("10.0.0.1/24")
    looking = asyncio.create_task(discover(TOKEN, reach=here.reach(), times=times_of(clock.clock)))
    await clock.settle()
    (asker,) = [socket for socket in here.sockets if socket.host == "0.0.0.0"]
    node.socket.send(node.says("10.0.0.2", leaving=True), "10.0.0.1", asker.port)
    node.socket.close()
    await clock.advance(1.5)
    assert await looking == ()


async def test_inventions_do_not_fill_the_memory(clock: ManualClock) -> None:
    net = FakeNet()
    host, here = net.host("10.0.0.2/24"), net.host("10.0.0.1/24")
    liars = [Node(host, number, token=None) for number in range(1, 80)]
    looking = asyncio.create_task(discover(None, reach=here.reach(), times=times_of(clock.clock), seconds=30))
    await clock.settle()
    asker = next(socket for socket in here.sockets if socket.host == "0.0.0.0")
    for step in range(60):
        await clock.advance(0.4)
        for liar in liars[:20]:
            liar.node_id = (1000 + step * 100 + liar.node_id[-1] % 100).to_bytes(16, "big")
            liar.socket.send(liar.says("10.0.0.2", sent_ms=int(NOW_MS + clock.now * 1000)), "10.0.0.1", asker.port)
    await clock.advance(10)
    assert len(await looking) <= MOST_FOUND


async def test_with_every_fifth_datagram_lost_it_is_found_within_a_second() -> None:
    """Both ways lose; 300 lookings of which one in a hundred may take longer than the second that is promised."""
    luck = random.Random(20)
    late = 0
    for _ in range(300):
        clock = ManualClock()
        net = FakeNet(loses=lambda: luck.random() < 0.2)
        Node(net.host("10.0.0.2/24"))
        here = net.host("10.0.0.1/24")
        looking = asyncio.create_task(discover(TOKEN, enough=1, reach=here.reach(), times=times_of(clock.clock)))
        await clock.settle()
        while not looking.done() and clock.sleeping:
            await clock.advance(clock.sleeping[0] - clock.now)
        late += not await looking
    assert late <= 3


def test_probes_come_quickly_first_and_slowly_later() -> None:
    pauses = [next_probe_pause(sent) for sent in range(1, 10_000)]
    assert pauses == sorted(pauses)
    assert sum(pauses[:5]) < 0.5
    assert sum(pauses[:7]) < 1.0
    assert pauses[-1] == 2.0


async def test_over_real_sockets_of_this_machine() -> None:
    port = free_udp_port()

    def answer(datagram: bytes, source: Source) -> None:
        probe, _ = unpack_beacon(datagram, TOKEN)
        assert isinstance(probe, Probe)
        said = Announcement(bytes(16), 1, 1, probe.sent_ms, "tower", (Address("127.0.0.1", 8765),))
        node.send(pack_beacon(dataclasses.replace(said, answers=probe.nonce), TOKEN), source.host, source.port)

    node = DatagramSocket("127.0.0.1", port, answer)
    try:
        (found,) = await discover(TOKEN, seconds=10, enough=1, reach=Reach(network=False, port=port))
    finally:
        node.close()
    assert (found.name, found.source, found.source_port, found.is_here) == ("tower", "127.0.0.1", port, True)
    assert found.seconds < 10


async def test_an_answer_that_is_late_still_counts() -> None:
    """Over a slow line three more probes are under way before the first one is answered."""

    def answer(datagram: bytes, source: Source) -> None:
        probe, _ = unpack_beacon(datagram, TOKEN)
        assert isinstance(probe, Probe)
        said = Announcement(bytes(16), 1, probe.sent_ms, 0, "tower", (Address("127.0.0.1", 8765),))
        source.answer(pack_beacon(dataclasses.replace(said, answers=probe.nonce), TOKEN))

    node = DatagramSocket("127.0.0.1", 0, answer)
    reach = Reach(network=False, port=free_udp_port())
    try:
        async with DelayProxy(("127.0.0.1", node.port), 0.1) as line:
            places = [("127.0.0.1", line.port)]
            (found,) = await discover(TOKEN, seconds=10, enough=1, places=places, reach=reach)
    finally:
        node.close()
    assert found.seconds >= 0.19
