"""Connections that are reset are noticed at once, with what came before, on asyncio's loop and on uvloop's.

uvloop calls once for a reset socket and then closes its own watch over it: whoever reads only a part then would never
hear of the rest, nor of the end.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.transport.feeds import Feed
from tests.transport.pair import End, connected, until
from transport.lines import TURN_BYTES, SocketLine
from wire.state import Role

MIB = 1 << 20
NO_LINGER = struct.pack("ii", 1, 0)

on_both_loops = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(loop_factory: LoopFactory, work: Coroutine[Any, Any, None]) -> None:
    """Whatever a callback raises is the test's failure."""
    broken: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
        async with asyncio.timeout(60):
            await work

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
    assert broken == []


def reset(bare: socket.socket) -> None:
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    bare.close()


@on_both_loops
@pytest.mark.parametrize("size", [0, 2, TURN_BYTES + 5])
def test_what_came_before_a_reset_is_read_and_the_reset_told(loop_factory: LoopFactory, size: int) -> None:
    async def work() -> None:
        bare, other = connected()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        line, feed = SocketLine(other), Feed()
        sent = 0
        while sent < size and (part := bare.send(bytes(size - sent), socket.MSG_DONTWAIT)):
            sent += part
            await until(lambda: other.recv(1, socket.MSG_PEEK))
        reset(bare)
        line.start(feed)
        await until(lambda: "lost" in feed.told)
        assert len(feed.received) == size
        assert isinstance(feed.errors[0], ConnectionResetError)
        assert feed.told.count("lost") == 1 and "ended" not in feed.told
        line.close()

    run(loop_factory, work())


@on_both_loops
def test_a_reset_while_our_last_words_are_out(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        bare, other = connected()
        line, feed = SocketLine(other), Feed()
        line.start(feed)
        line.end()
        bare.send(b"still talking")
        reset(bare)
        await until(lambda: "ended" in feed.told)
        line.close()

    run(loop_factory, work())


@on_both_loops
def test_a_feed_may_end_a_line_whose_peer_has_reset_it(loop_factory: LoopFactory) -> None:
    class Ending(Feed):
        def buffer_updated(self, count: int) -> int:
            line.end()
            return super().buffer_updated(count)

    async def work() -> None:
        bare.send(b"rubbish")
        reset(bare)
        line.start(feed)
        await until(lambda: "ended" in feed.told)
        line.close()

    bare, other = connected()
    line, feed = SocketLine(other), Ending()
    run(loop_factory, work())


@on_both_loops
def test_a_write_that_fails_ends_the_line(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        bare, other = connected()
        line, feed = SocketLine(other), Feed()
        line.start(feed)
        bare.send(b"last words")
        reset(bare)
        while not line.is_full:
            line.write([b"to nobody"])
        await until(lambda: feed.told.count("lost"))
        assert feed.received == b"last words"
        line.close()

    run(loop_factory, work())


@on_both_loops
def test_a_driver_whose_peer_says_half_a_frame_and_resets(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        bare, other = connected()
        end = End(Role.SERVER)
        end.driver.attach(SocketLine(other))
        bare.send(b"\1\x10")
        reset(bare)
        await end.driver.wait_closed()
        assert "reset" in str(end.losses[0])
        end.driver.close()

    run(loop_factory, work())
