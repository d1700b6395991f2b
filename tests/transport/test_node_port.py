"""The sockets of a node: what it binds by where it listens, and by which of them it speaks."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.datagram_net import FakeHost, FakeNet
from transport.datagrams import Source
from transport.node_port import NodePort


def _opened(listening: str, refused: frozenset[tuple[str, int]] = frozenset()) -> tuple[FakeHost, NodePort, list]:
    host = FakeNet().host("10.0.0.1/24", "192.168.1.1/24")
    host.refused = set(refused)
    heard: list[tuple[bytes, Source]] = []
    port = NodePort(listening, 8766, lambda *what: heard.append(what), host.reach())
    return host, port, heard


def _near(host: FakeHost, listening: str) -> list:
    return [one for one in host.interfaces if listening in ("0.0.0.0", one.address)]


@pytest.mark.parametrize(
    ("listening", "bound"),
    [
        ("0.0.0.0", {"0.0.0.0"}),
        ("127.0.0.1", {"127.0.0.1", "127.255.255.255"}),
        ("10.0.0.1", {"10.0.0.1", "10.0.0.255", "255.255.255.255"}),
        ("::", {"0.0.0.0", "::"}),
        ("::1", {"::1"}),
    ],
)
async def test_it_binds_where_the_relay_listens_and_no_further(listening: str, bound: set[str]) -> None:
    host, port, _ = _opened(listening)
    assert port.refresh(_near(host, listening)) is None
    assert port.refresh(_near(host, listening)) is None
    assert {one.host for one in host.sockets if one.port == 8766} == bound
    own = [one for one in host.sockets if one.port != 8766]
    assert own[0].port == port.own_port
    port.close()
    assert host.sockets == []


async def test_what_is_heard_by_a_broadcast_address_is_answered_from_a_real_one() -> None:
    host, port, heard = _opened("10.0.0.1")
    port.refresh(_near(host, "10.0.0.1"))
    asker = host.net.host("10.0.0.2/24")
    answers: list[Source] = []
    asking = asker.open("0.0.0.0", 0, lambda _, source: answers.append(source))
    asking.send(b"?", "10.0.0.255", 8766)
    await asyncio.sleep(0)
    ((datagram, source),) = heard
    source.answer(b"!")
    await asyncio.sleep(0)
    assert datagram == b"?"
    assert [(one.host, one.port) for one in answers] == [("10.0.0.1", 8766)]
    port.send(b"news", "10.0.0.2", asking.port)
    await asyncio.sleep(0)
    assert answers[-1].port == 8766


async def test_a_port_that_is_taken_is_told_and_had_later() -> None:
    host, port, _ = _opened("10.0.0.1", frozenset({("10.0.0.1", 8766)}))
    near = _near(host, "10.0.0.1")
    assert isinstance(port.refresh(near), OSError)
    asker = host.net.host("10.0.0.2/24")
    answers: list[Source] = []
    asking = asker.open("0.0.0.0", 0, lambda _, source: answers.append(source))
    port.send(b"news", "10.0.0.2", asking.port)
    await asyncio.sleep(0)
    assert [one.port for one in answers] == [port.own_port]
    host.refused.clear()
    assert port.refresh(near) is None
    assert ("10.0.0.1", 8766) in [(one.host, one.port) for one in host.sockets]


async def test_a_machine_without_ipv6_misses_nothing() -> None:
    host, port, _ = _opened("::", frozenset({("::", 8766), ("::", 0)}))
    assert port.refresh(host.interfaces) is None
    assert {one.host for one in host.sockets} == {"0.0.0.0"}


async def test_a_network_that_went_away_is_let_go() -> None:
    host, port, _ = _opened("10.0.0.1")
    port.refresh(_near(host, "10.0.0.1"))
    port.refresh([])
    assert {one.host for one in host.sockets if one.port == 8766} == {"10.0.0.1"}
