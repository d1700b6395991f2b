"""TLS lines: as plain ones, and what goes wrong before they are."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Any

import pytest
import uvloop

from tests.transport.certificates import server_context, trusting_context
from tests.transport.feeds import Feed
from tests.transport.pair import connected, pair, until
from transport.errors import ConnectFailed
from transport.lines import SocketLine
from transport.tls import Tls, TlsLine, line_over
from wire.errors import RemoteError
from wire.frames import FrameType
from wire.messages_session import GoodbyeReason

T = FrameType
MIB = 1 << 20


async def lines(lenient: bool = False) -> tuple[Any, Any]:
    """`lenient`: the client's context ignores a missing farewell, as Python 3.11.2 makes them."""
    ours, theirs = connected()
    trusting = trusting_context()
    if lenient:
        trusting.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    made = await asyncio.gather(
        line_over(ours, Tls(trusting, server_name="node.test")),
        line_over(theirs, Tls(server_context(), server_side=True)),
    )
    return made[0], made[1]


async def test_without_tls_it_is_a_plain_line() -> None:
    ours, theirs = socket.socketpair()
    line = await line_over(ours)
    assert type(line) is SocketLine
    line.close()
    theirs.close()


async def _tensor_and_farewell() -> None:
    async with pair(lines=await lines()) as both:
        data = os.urandom(8 * MIB)
        ours, theirs = await both.ask(T.READ)
        room = bytearray(len(data))
        ours.receive_into(memoryview(room))

        async def put() -> None:
            for start in range(0, len(data), MIB):
                await theirs.send(T.DATA, memoryview(data)[start : start + MIB], ends=start + MIB == len(data))

        putting = asyncio.ensure_future(put())
        while not (await ours.receive()).ends:
            pass
        await putting
        assert room == data
        small, theirs_small = await both.ask()
        for number in range(500):
            await theirs_small.send(T.TOKENS, b"%d" % number, ends=number == 499)
        for number in range(500):
            frame = await small.receive()
            assert frame.payload == b"%d" % number
            small.release(frame)
        assert both.server.driver.sent_bytes == both.client.driver.received_bytes > 8 * MIB
        both.client.driver.goodbye(GoodbyeReason.FINISHED)
        await until(lambda: both.server.control[-1].type is T.GOODBYE)
        both.server.driver.goodbye(GoodbyeReason.FINISHED)
        await both.client.driver.wait_closed()
        await both.server.driver.wait_closed()
        assert both.client.losses == both.server.losses == [None]


async def test_a_tensor_small_frames_and_a_farewell() -> None:
    await _tensor_and_farewell()


def test_the_same_under_uvloop() -> None:
    uvloop.run(_tensor_and_farewell())


async def test_what_waits_is_bounded_while_the_peer_does_not_read() -> None:
    ours, theirs = await lines()
    feed = Feed()
    ours.start(feed)
    data = os.urandom(2 * MIB)
    written = 0
    while ours.write([memoryview(data)]):
        written += len(data)
    assert ours.is_full
    assert sum(map(len, ours._kept)) <= len(data)
    other = Feed()
    theirs.start(other)
    await until(lambda: "ready" in feed.told)
    await until(lambda: len(other.received) == written + len(data))
    assert other.received[-len(data) :] == data
    ours.close()
    theirs.close()


@pytest.mark.parametrize("lenient", [False, True])
async def test_a_peer_that_is_cut_counts_as_lost(lenient: bool) -> None:
    ours, theirs = await lines(lenient)
    feed = Feed()
    ours.start(feed)
    raw = theirs._secured.detach()
    os.close(raw)
    await until(lambda: feed.errors)
    ours.close()


async def test_a_drivers_peer_that_is_cut_loses_the_connection() -> None:
    async with pair(lines=await lines()) as both:
        ours, _ = await both.ask()
        both.server.driver._line._socket.shutdown(socket.SHUT_RDWR)
        await ours.wait_over()
        assert both.client.losses[0] is not None and not isinstance(both.client.losses[0], RemoteError)


@pytest.mark.parametrize("fault", ["no tls", "other name", "not trusted", "gone"])
async def test_tls_that_cannot_be_agreed_on(fault: str) -> None:
    ours, theirs = connected()
    server = None
    if fault == "no tls":
        theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif fault == "gone":
        theirs.close()
    else:
        server = asyncio.ensure_future(line_over(theirs, Tls(server_context(), server_side=True)))
    trusted = ssl.create_default_context() if fault == "not trusted" else trusting_context()
    with pytest.raises(ConnectFailed, match="no TLS") as told:
        await line_over(ours, Tls(trusted, server_name="other.test" if fault == "other name" else "node.test"))
    assert ours.fileno() == -1
    if fault != "gone":
        assert told.value.address.startswith("127.0.0.1:")
    if server is not None:
        with pytest.raises(ConnectFailed):
            line = await server
            # The server may have its handshake done before the client refuses; then it learns when it reads.
            feed = Feed()
            line.start(feed)
            await until(lambda: feed.errors or "ended" in feed.told)
            line.close()
            raise ConnectFailed("", "later")
    theirs.close()


async def test_a_handshake_that_does_not_come_is_given_up() -> None:
    ours, theirs = connected()
    with pytest.raises(ConnectFailed, match="within 0 seconds"):
        await line_over(theirs, Tls(server_context(), server_side=True, handshake_seconds=0))
    assert theirs.fileno() == -1
    ours.close()


async def test_a_handshake_that_is_called_off_leaves_nothing() -> None:
    ours, theirs = connected()
    shaking = asyncio.ensure_future(TlsLine.over(theirs, Tls(server_context(), server_side=True)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    shaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shaking
    assert theirs.fileno() == -1
    ours.close()
