"""The way to a socket when a name has several addresses."""

import asyncio
import socket

import pytest

from tests.fakes.ports import free_port
from transport.errors import ConnectFailed
from transport.places import Access, Place, _interleaved, reach


async def test_a_name_is_tried_at_all_its_addresses():
    async def close(_reader, writer):
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:  # "localhost" may be ::1 first, where nobody listens
        made = await reach(Place("localhost", server.sockets[0].getsockname()[1]))
        assert made.getblocking() is False
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        made.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_where_nobody_listens_it_says_so(host):
    with pytest.raises(ConnectFailed, match="connection refused") as failed:
        await reach(Place(host, free_port()))
    assert isinstance(failed.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 80, ".."])
async def test_what_is_no_host_says_so(host):
    with pytest.raises(ConnectFailed):
        await reach(Place(host, 1))


async def test_giving_up_leaves_no_socket():
    full = socket.socket()  # the kernel answers nobody when the queue of its listener is full
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    place = Place(*full.getsockname())
    waiting = [socket.socket() for _ in range(3)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reach(place)
    for each in (full, *waiting):
        each.close()


def test_families_take_turns():
    six, four = socket.AF_INET6, socket.AF_INET
    given = [(six, "a"), (six, "b"), (four, "c"), (four, "d"), (six, "e")]
    assert [name for _, name in _interleaved(given)] == ["a", "c", "b", "d", "e"]


def test_words_for_a_place():
    assert str(Place("node")) == "node:8765" and str(Place("::1", 9)) == "[::1]:9"
    assert "secret" not in repr(Access("secret"))
