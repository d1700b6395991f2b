"""A node that makes itself known: who gets an answer, how often it speaks, and what it says when it goes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator

import pytest

from gpu_node.announce import (
    EACH_SOURCE,
    LONGEST_SPREAD_SECONDS,
    NEIGHBOUR_SECONDS,
    NODES_AT_ONCE,
    PAUSE_SECONDS,
    AnnounceOptions,
    Announcer,
    Neighbours,
    announce_pause,
    answer_pause,
)
from gpu_node.announcement import RelayPlace, Standing
from gpu_node.identity import Identity
from tests.fakes.datagram_net import FakeHost, FakeNet, FakeSocket, times_of
from tests.fakes.manual_clock import ManualClock
from transport.datagrams import Source
from wire.beacon import SKEW_MS, Announcement, Probe, pack_beacon, unpack_beacon

TOKEN = "correct horse"
STANDING = Standing(("smollm2:135m",), 5, 9, 0.25)


class Asker:
    """A host that asks and hears."""

    def __init__(self, net: FakeNet, clock: ManualClock, address: str = "10.0.0.9/24") -> None:
        self.host, self.clock = net.host(address), clock
        self.answers: list[tuple[Announcement, bool]] = []
        self.heard: list[Announcement] = []
        self.sizes: list[int] = []
        self.socket: FakeSocket = self.host.open("0.0.0.0", 0, self._answered)
        self.host.open("0.0.0.0", 8766, self._heard)
        self.token: str | None = TOKEN
        self.news = asyncio.Event()
        self.count = 0

    def _answered(self, datagram: bytes, _: object) -> None:
        self.sizes.append(len(datagram))
        self.answers.append(unpack_beacon(datagram, self.token))
        self.news.set()

    def _heard(self, datagram: bytes, _: object) -> None:
        beacon, _signed = unpack_beacon(datagram, None)
        if isinstance(beacon, Announcement):
            self.heard.append(beacon)

    async def ask(self, host: str = "10.0.0.255", **changes: object) -> list[Announcement]:
        self.count += 1
        nonce = self.count.to_bytes(16, "big")
        probe = Probe(nonce, int((self.clock.wall_start + self.clock.now) * 1000))
        before = len(self.answers)
        self.socket.send(pack_beacon(dataclasses.replace(probe, **changes), self.token), host, 8766)
        await self.clock.settle()
        return [answer for answer, _ in self.answers[before:]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def net() -> FakeNet:
    return FakeNet()


def _announcer(host: FakeHost, clock: ManualClock, token: str | None = TOKEN, listens: str = "0.0.0.0") -> Announcer:
    options = AnnounceOptions(mdns=False, times=times_of(clock.clock), reach=host.reach(), draw=lambda: 0.0)
    identity = Identity("tower", bytes(range(16)), 7)
    return Announcer(identity, RelayPlace(listens, 8765), lambda: STANDING, token, options)


@pytest.fixture
async def tower(net: FakeNet, clock: ManualClock) -> AsyncIterator[FakeHost]:
    host = net.host("10.0.0.1/24", "172.17.0.1/16")
    announcer = _announcer(host, clock)
    await announcer.start()
    await clock.settle()
    yield host
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping
    assert host.sockets == []


async def test_a_probe_is_answered_at_once_with_what_fits_the_asker(net, clock, tower) -> None:
    asker = Asker(net, clock)
    (answer,) = await asker.ask()
    assert answer.answers == (1).to_bytes(16, "big")
    assert [(each.host, each.port) for each in answer.addresses] == [("10.0.0.1", 8765)]
    assert (answer.name, answer.incarnation, answer.models) == ("tower", 7, ("smollm2:135m",))
    assert (answer.free_bytes, answer.total_bytes, answer.load) == (5, 9, 0.25)
    assert answer.token_wanted
    assert clock.now == 0.0
    (plain,) = await asker.ask("10.0.0.1")
    assert plain.serial > answer.serial


@pytest.mark.parametrize("token", [None, "another"])
async def test_who_does_not_share_the_token_gets_nothing(net, clock, tower, token) -> None:
    asker = Asker(net, clock)
    asker.token = token
    assert await asker.ask() == []


async def test_a_recorded_probe_is_worth_nothing(net, clock, tower) -> None:
    asker = Asker(net, clock)
    assert len(await asker.ask(nonce=b"n" * 16)) == 1
    assert await asker.ask(nonce=b"n" * 16) == []
    await clock.advance(SKEW_MS / 1000 + 1)
    assert await asker.ask(nonce=b"o" * 16, sent_ms=int(clock.wall_start * 1000)) == []


async def test_clocks_that_are_apart_are_told_once(net, clock, tower, caplog) -> None:
    asker = Asker(net, clock)
    with caplog.at_level(logging.WARNING, "gpu_node"):
        for _ in range(2):
            assert await asker.ask(sent_ms=int(clock.wall_start * 1000) - 2 * SKEW_MS) == []
    assert [record.getMessage() for record in caplog.records] == [
        "10.0.0.9 looks for nodes; its clock and ours are 600 s apart: set them"
    ]


async def test_one_source_gets_so_many_answers_and_another_one_all_the_same(net, clock, tower) -> None:
    loud, other = Asker(net, clock), Asker(net, clock, "10.0.0.8/24")
    for _ in range(300):
        await loud.ask()
    assert len(loud.answers) == EACH_SOURCE.burst
    assert len(await other.ask(nonce=b"x" * 16)) == 1
    await clock.advance(1.0)
    for _ in range(300):
        await loud.ask()
    assert len(loud.answers) <= EACH_SOURCE.burst + 2 * EACH_SOURCE.per_second


async def test_garbage_gets_no_answer(net, clock, tower) -> None:
    asker = Asker(net, clock)
    for data in (b"", b"PL\x01\x01", bytes(1200), b"PL\x01\x81" + bytes(64)):
        asker.socket.send(data, "10.0.0.1", 8766)
    await clock.settle()
    assert asker.answers == []
    assert len(await asker.ask()) == 1


async def test_it_announces_itself_on_every_network_again_and_again(net, clock) -> None:
    host = net.host("10.0.0.1/24", "172.17.0.1/16")
    near, far = Asker(net, clock), Asker(net, clock, "172.17.0.9/16")
    announcer = _announcer(host, clock)
    await announcer.start()
    await clock.advance(1.3 + 2 * PAUSE_SECONDS)
    assert [each.addresses[0].host for each in near.heard] == ["10.0.0.1"] * 5
    assert [each.addresses[0].host for each in far.heard] == ["172.17.0.1"] * 5
    serials = sorted(each.serial for each in near.heard + far.heard)
    assert len(set(serials)) == len(serials)
    assert not any(each.leaving for each in near.heard)
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping
    assert [each.leaving for each in near.heard[5:]] == [True, True, True]
    assert host.sockets == []
    assert clock.sleeping == []


async def test_a_network_that_comes_later_is_told_too(net, clock, tower) -> None:
    whole, tower.interfaces = tower.interfaces, tower.interfaces[:1]
    asker = Asker(net, clock)
    await clock.advance(PAUSE_SECONDS)
    asker.heard.clear()
    tower.interfaces = whole
    await clock.advance(PAUSE_SECONDS)
    assert asker.heard


async def test_on_loopback_only_this_machine_hears_of_it(net, clock) -> None:
    host = net.host("10.0.0.1/24")
    asker = Asker(net, clock)
    announcer = _announcer(host, clock, token=None, listens="127.0.0.1")
    await announcer.start()
    here = Asker.__new__(Asker)
    here.host, here.clock, here.answers, here.heard, here.sizes, here.count = host, clock, [], [], [], 100
    here.token, here.news = None, asyncio.Event()
    asker.token = None
    here.socket = host.open("127.0.0.1", 0, here._answered)
    assert await asker.ask() == []
    assert await asker.ask("10.0.0.1") == []
    (answer,) = await here.ask("127.255.255.255")
    assert answer.addresses[0].host == "127.0.0.1"
    assert not answer.token_wanted
    assert len(await here.ask("127.0.0.1")) == 1
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping
    assert asker.heard == []
    assert all(target.startswith("127.") for source, target, _, _ in net.carried if source == "127.0.0.1")


async def test_open_answers_are_short_and_stay_on_our_networks(clock) -> None:
    net = FakeNet(routed=True)
    host = net.host("10.0.0.1/24")
    announcer = _announcer(host, clock, token=None)
    await announcer.start()
    near, far = Asker(net, clock), Asker(net, clock, "203.0.113.9/24")
    near.token = far.token = None
    await near.ask()
    assert near.sizes[0] < 180
    assert await far.ask("10.0.0.1") == []
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping


async def test_a_port_that_cannot_be_had_is_one_warning(net, clock, caplog) -> None:
    host = net.host("10.0.0.1/24")
    host.refused = {("0.0.0.0", 8766)}
    announcer = _announcer(host, clock)
    with caplog.at_level(logging.WARNING, "gpu_node"):
        await announcer.start()
        await clock.advance(3 * PAUSE_SECONDS)
    assert [record.getMessage() for record in caplog.records] == [
        "UDP port 8766 cannot be had (address in use): this node may not be found"
    ]
    host.refused = set()
    await clock.advance(PAUSE_SECONDS)
    assert len(await Asker(net, clock).ask()) == 1
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping


async def test_a_fault_of_ours_does_not_silence_the_node(net, clock, caplog) -> None:
    host = net.host("10.0.0.1/24")
    told = iter([RuntimeError("no models")])

    def standing() -> Standing:
        for error in told:
            raise error
        return STANDING

    options = AnnounceOptions(mdns=False, times=times_of(clock.clock), reach=host.reach())
    announcer = Announcer(Identity("t", bytes(16), 1), RelayPlace("0.0.0.0", 1), standing, TOKEN, options)
    asker = Asker(net, clock)
    with caplog.at_level(logging.ERROR, "gpu_node"):
        await announcer.start()
        await clock.advance(2 * PAUSE_SECONDS)
    assert "an announcement failed" in caplog.text
    assert asker.heard
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping


async def test_a_fault_that_stays_does_not_hold_up_the_end(net, clock, caplog) -> None:
    def standing() -> Standing:
        raise PermissionError("the models cannot be read")

    host = net.host("10.0.0.1/24")
    options = AnnounceOptions(mdns=True, times=times_of(clock.clock), reach=host.reach())
    announcer = Announcer(Identity("t", bytes(16), 1), RelayPlace("0.0.0.0", 1), standing, TOKEN, options)
    with caplog.at_level(logging.ERROR, "gpu_node"):
        await announcer.start()
        await clock.advance(PAUSE_SECONDS + 1)
        before = caplog.text.count("mDNS is not told")
        await clock.advance(PAUSE_SECONDS)
        assert caplog.text.count("mDNS is not told") > before > 0, "it is tried again"
        await announcer.stop()
    assert "a farewell failed" in caplog.text
    assert host.sockets == []


async def test_garbage_of_many_sources_does_not_use_up_what_askers_have(net, clock, tower) -> None:
    asker = Asker(net, clock)
    (heard,) = [one for one in tower.sockets if (one.host, one.port) == ("0.0.0.0", 8766)]
    for number in range(3000):
        heard.deliver(b"PL\x01\x81" + bytes(60), Source(f"10.0.1.{number}", 1, heard))
    assert len(await asker.ask()) == 1


async def test_an_open_answer_names_one_address(net, clock) -> None:
    host = net.host("10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24")
    host.interfaces = tuple(dataclasses.replace(one, name="e0") for one in host.interfaces)
    announcer = _announcer(host, clock, token=None)
    await announcer.start()
    await clock.settle()
    asker = Asker(net, clock)
    asker.token = None
    (answer,) = await asker.ask()
    assert len(answer.addresses) == 1
    assert asker.sizes[0] < 200
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping


async def test_stopping_before_starting_says_nothing(net, clock) -> None:
    announcer = _announcer(net.host("10.0.0.1/24"), clock)
    await announcer.stop()
    assert net.carried == []


async def test_among_many_nodes_answers_are_spread(net, clock) -> None:
    host, asker = net.host("10.0.0.1/24"), Asker(net, clock)
    options = AnnounceOptions(mdns=False, times=times_of(clock.clock), reach=host.reach(), draw=lambda: 1.0)
    identity = Identity("tower", bytes(range(16)), 7)
    announcer = Announcer(identity, RelayPlace("0.0.0.0", 8765), lambda: STANDING, TOKEN, options)
    await announcer.start()
    (alone,) = await asker.ask()
    for number in range(NODES_AT_ONCE):
        other = dataclasses.replace(alone, node_id=number.to_bytes(16, "little"), answers=b"")
        asker.socket.send(pack_beacon(other, TOKEN), "10.0.0.255", 8766)
    assert await asker.ask() == []
    async with asyncio.timeout(60):
        asker.news.clear()
        await asker.news.wait()  # the loop's own clock runs this one
    assert len(asker.answers) == 2
    assert await asker.ask() == []
    stopping = asyncio.create_task(announcer.stop())
    await clock.advance(1)
    await stopping
    await asyncio.sleep(0.05)
    assert len(asker.answers) == 2


def test_pauses() -> None:
    assert [announce_pause(sent, 0.0) for sent in (1, 2, 3, 4)] == [0.3, 1.0, PAUSE_SECONDS, PAUSE_SECONDS]
    assert announce_pause(9, 1.0) == pytest.approx(0.8 * PAUSE_SECONDS)
    assert answer_pause(NODES_AT_ONCE - 1, 1.0) == 0.0
    assert answer_pause(NODES_AT_ONCE, 1.0) == pytest.approx(0.016)
    assert answer_pause(100_000, 1.0) == LONGEST_SPREAD_SECONDS


def test_neighbours_are_counted_while_they_are_heard() -> None:
    neighbours = Neighbours()
    for number in range(5000):
        neighbours.hear(number.to_bytes(16, "big"), 1.0)
    assert neighbours.count(1.0) == 1024
    neighbours.hear(b"late", 10.0)
    assert neighbours.count(1.0 + NEIGHBOUR_SECONDS + 0.1) == 1
    assert neighbours.count(100.0) == 0
