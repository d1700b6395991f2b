"""Sockets that share a port on one machine: who hears what, and that a listener takes nothing away from a node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.transport.ports import free_udp_port
from transport.datagrams import DatagramSocket, Source, close_all, numeric
from wire.beacon import DATAGRAM_MOST


class Ear:
    """Opens sockets and remembers what each heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.sources: list[Source] = []
        self.opened: list[DatagramSocket] = []
        self.news = asyncio.Event()

    def open(self, name: str, host: str, port: int) -> DatagramSocket:
        def deliver(datagram: bytes, source: Source) -> None:
            self.heard.append((name, datagram))
            self.sources.append(source)
            self.news.set()

        self.opened.append(DatagramSocket(host, port, deliver))
        return self.opened[-1]

    async def hears(self, count: int) -> list[tuple[str, bytes]]:
        async with asyncio.timeout(60):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()
        await asyncio.sleep(0)
        return sorted(self.heard)


@pytest.fixture
async def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    close_all(made.opened)


async def test_a_broadcast_reaches_everybody_and_a_plain_datagram_only_the_node(ear: Ear) -> None:
    port = free_udp_port()
    for name, host in (("node", "127.0.0.1"), ("node hears", "127.255.255.255"), ("gateway", "127.255.255.255")):
        ear.open(name, host, port)
    sender = ear.open("sender", "127.0.0.1", 0)
    sender.send(b"all", "127.255.255.255", port)
    sender.send(b"one", "127.0.0.1", port)
    assert await ear.hears(3) == [("gateway", b"all"), ("node", b"one"), ("node hears", b"all")]


async def test_an_answer_goes_back_to_where_the_datagram_came_from(ear: Ear) -> None:
    node = ear.open("node", "127.0.0.1", 0)
    asker = ear.open("asker", "127.0.0.1", 0)
    asker.send(b"?", "127.0.0.1", node.port)
    await ear.hears(1)
    ear.sources[0].answer(b"!")
    assert await ear.hears(2) == [("asker", b"!"), ("node", b"?")]
    assert (ear.sources[1].host, ear.sources[1].port) == ("127.0.0.1", node.port)


async def test_too_long_a_datagram_shows_as_such(ear: Ear) -> None:
    node = ear.open("node", "127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.sendto(bytes(5000), ("127.0.0.1", node.port))
    ((_, datagram),) = await ear.hears(1)
    assert len(datagram) == DATAGRAM_MOST + 1


async def test_what_cannot_be_sent_is_lost_and_nothing_more(ear: Ear) -> None:
    sender = ear.open("sender", "127.0.0.1", 0)
    for host in ("203.0.113.9", "::1", "no address", "255.255.255.255"):
        sender.send(b"x", host, 9)
    sender.send(bytes(70_000), "127.0.0.1", sender.port)
    sender.close()
    sender.send(b"x", "127.0.0.1", 9)
    assert ear.heard == []


async def test_a_port_of_somebody_else_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            DatagramSocket("127.0.0.1", other.getsockname()[1], lambda *_: None)


async def test_a_name_is_never_looked_up() -> None:
    assert numeric("localhost", 1) is None
    with pytest.raises(OSError, match="no address"):
        DatagramSocket("localhost", 0, lambda *_: None)


async def test_closing_within_a_delivery_ends_the_reading() -> None:
    heard: list[bytes] = []
    closed = asyncio.Event()

    def deliver(datagram: bytes, source: Source) -> None:
        heard.append(datagram)
        node.close()
        closed.set()

    node = DatagramSocket("127.0.0.1", 0, deliver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        for number in range(3):
            plain.sendto(bytes([number]), ("127.0.0.1", node.port))
    async with asyncio.timeout(60):
        await closed.wait()
    assert heard == [b"\0"]
    node.close()
