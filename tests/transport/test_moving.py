"""Tensors through drivers: nothing of them is copied, also under another loop."""

from __future__ import annotations

import asyncio
import tracemalloc

import uvloop

from tests.transport.pair import Pair, connected, pair, until
from transport.lines import SocketLine
from wire.frames import FrameType
from wire.messages_session import ErrorCode, GoodbyeReason

T = FrameType
MIB = 1 << 20


async def _move(both: Pair, size: int) -> bytes:
    """A tensor there, and back again."""
    source, there, back = memoryview(bytes(range(256)) * (size // 256)), bytearray(size), bytearray(size)
    both.server.at_request = lambda stream, _: (
        stream.receive_into(memoryview(there)) if stream.request is T.WRITE else None,
        both.server.requests.put_nowait((stream, _)),
    )[0]
    tracemalloc.start()
    try:
        ours = await both.client.driver.open(T.WRITE, b"header")
        theirs = await both.server.request()
        await _carry(ours, theirs, source, there)
        await theirs.send(T.ACK, b"", ends=True)
        await ours.receive()
        ours = await both.client.driver.open(T.READ, b"which", ends=True)
        ours.receive_into(memoryview(back))
        await _carry(await both.server.request(), ours, memoryview(there), back)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert there == back == source
    return bytes(back[:4])


async def _carry(sender, receiver, source: memoryview, room: bytearray) -> None:
    async def put() -> None:
        for start in range(0, len(source), MIB):
            await sender.send(T.DATA, source[start : start + MIB], ends=start + MIB >= len(source))

    putting = asyncio.ensure_future(put())
    done = 0
    while done < len(source):
        got = await receiver.receive()
        if not got.placed:  # it was on its way before the room was named
            room[done : done + len(got.payload)] = got.payload
        done += len(got.payload)
        receiver.release(got)
    await putting


async def test_a_tensor_is_moved_without_a_copy() -> None:
    async with pair(lines=tuple(SocketLine(each) for each in connected())) as both:
        assert await _move(both, 64 * MIB) == b"\0\1\2\3"


def test_all_of_it_under_uvloop() -> None:
    async def scenario() -> None:
        async with pair(lines=tuple(SocketLine(each) for each in connected())) as both:
            assert await _move(both, 8 * MIB) == b"\0\1\2\3"
            ours, theirs = await both.ask()
            await theirs.send(T.TOKENS, b"one")
            ours.cancel()
            await until(lambda: theirs.cancelled)
            theirs.fail(ErrorCode.CANCELLED)
            await ours.wait_over()
            both.client.driver.goodbye(GoodbyeReason.FINISHED)
            await until(lambda: both.server.control[-1].type is T.GOODBYE)
            both.server.driver.goodbye(GoodbyeReason.FINISHED)
            await both.client.driver.wait_closed()
            await both.server.driver.wait_closed()
            assert both.client.losses == both.server.losses == [None]

    uvloop.run(scenario())
