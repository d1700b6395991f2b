"""Drivers: one write per turn, bounded memory, faults told, every way to end, nothing left open."""

from __future__ import annotations

import asyncio
import gc
import socket
from itertools import pairwise
from typing import Any

import pytest

from tests.transport.pair import End, Pair, connected, pair, until
from tests.wire.pipe import frame
from transport.driver import WRITE_BYTES, Driver
from transport.ending import CLOSING_SECONDS
from transport.errors import ConnectionLost, ProtocolBroken, Refused
from transport.lines import SocketLine
from wire.errors import BadPayload, IllegalSend, QueueFull, WrongProof
from wire.frames import FrameType
from wire.limits import Limits
from wire.messages import encode_message
from wire.messages_session import Error, ErrorCode, GoodbyeReason
from wire.state import ConnectionState, Role

T = FrameType
MIB = 1 << 20


class CountingLine(SocketLine):
    """Counts its writes and the bytes of the largest."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self.writes = 0
        self.kept_most = 0

    def write(self, buffers):
        self.writes += 1
        done = super().write(buffers)
        self.kept_most = max(self.kept_most, sum(map(len, self._kept)))
        return done


async def server_alone() -> tuple[End, socket.socket]:
    """A server before its handshake, and the bare other end of its socket."""
    bare, other = socket.socketpair()
    bare.setblocking(False)
    server = End(Role.SERVER)
    server.driver.attach(SocketLine(other))
    return server, bare


async def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    one, other = (CountingLine(each) for each in socket.socketpair())
    async with pair(lines=(one, other)) as both:
        streams = [await both.ask() for _ in range(20)]
        before = other.writes
        for _, theirs in streams:
            for _ in range(60):
                await theirs.send(T.TOKENS, b"token")
        assert other.writes == before
        for ours, _ in streams:
            assert (await ours.receive()).payload == b"token"
        assert other.writes == before + 1


async def test_pings_are_answered_and_told() -> None:
    async with pair() as both:
        await both.client.driver.send_control(T.PING, b"echo")
        await until(lambda: both.client.control[-1].type is T.PONG)
        assert both.client.control[-1].payload == b"echo"
        assert both.server.control[-1].type is T.PING


async def test_bytes_are_counted_and_the_last_hearing_noted() -> None:
    async with pair() as both:
        heard = both.client.driver.last_heard
        assert both.client.driver.sent_bytes == both.server.driver.received_bytes > 0
        assert 0 < heard <= asyncio.get_running_loop().time()
    unattached = Driver(Role.CLIENT, on_control=print, on_lost=lambda _: None)
    assert unattached.sent_bytes == unattached.received_bytes == 0
    unattached.close()
    await unattached.wait_closed()


async def test_the_goodbyes_of_both_sides_end_it_cleanly() -> None:
    async with pair() as both:
        both.server.at_control = lambda frame: (
            both.server.driver.goodbye(GoodbyeReason.FINISHED) if frame.type is T.GOODBYE else None
        )
        ours, _ = await both.ask()
        both.client.driver.goodbye(GoodbyeReason.FINISHED, "x" * 5000)
        both.client.driver.goodbye(GoodbyeReason.FINISHED)
        for end in (both.client, both.server):
            await end.driver.wait_closed()
            assert end.losses == [None]
            assert end.control[-1].type is T.GOODBYE
        with pytest.raises(ConnectionLost):
            await ours.receive()


async def test_a_draining_server_lets_streams_end() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        both.server.driver.goodbye(GoodbyeReason.STOPPING)
        await until(lambda: both.client.driver.connection.state is ConnectionState.DRAINING)
        with pytest.raises(IllegalSend):
            await both.client.driver.open(T.STATS, ends=True)
        await theirs.send(T.DONE, b"whole", ends=True)
        assert (await ours.receive()).payload == b"whole"
        both.client.driver.goodbye(GoodbyeReason.FINISHED)
        await both.client.driver.wait_closed()
        await both.server.driver.wait_closed()
        assert both.client.losses == both.server.losses == [None]


async def test_a_client_that_leaves_and_hears_no_goodbye_is_let_go() -> None:
    async with pair() as both:
        both.client.driver.goodbye(GoodbyeReason.FINISHED)
        await until(lambda: both.server.control[-1].type is T.GOODBYE)
        both.server.driver.close()
        await both.client.driver.wait_closed()
        assert both.client.losses == [None]


async def test_close_takes_the_last_words_along() -> None:
    async with pair() as both:
        both.server.driver.goodbye(GoodbyeReason.IDLE)
        both.server.driver.close()
        both.server.driver.close()
        await both.client.driver.wait_closed()
        assert both.client.control[-1].type is T.GOODBYE
        assert isinstance(both.client.losses[0], ConnectionLost) and len(both.client.losses) == 1
        assert both.server.losses == [None]


async def test_an_error_of_the_peer_ends_it_with_its_code() -> None:
    async with pair() as both:
        ours, _ = await both.ask()
        both.server.driver.abandon(ErrorCode.SESSION_GONE, "idle for long")
        both.server.driver.abandon(ErrorCode.BUSY)
        with pytest.raises(ConnectionLost, match="idle for long") as told:
            await ours.receive()
        assert told.value.code is ErrorCode.SESSION_GONE
        for end in (both.client, both.server):
            await end.driver.wait_closed()
            assert [loss.code for loss in end.losses] == [ErrorCode.SESSION_GONE]


@pytest.mark.parametrize("where", ["control", "request"])
async def test_remote_errors_of_callbacks_are_told_to_the_peer(where: str) -> None:
    def fault(*_) -> None:
        raise WrongProof("another token")

    async with pair() as both:
        if where == "control":
            both.server.at_control = fault
            await both.client.driver.send_control(T.PING, b"")
        else:
            both.server.at_request = fault
            await both.client.driver.open(T.STATS, ends=True)
            await both.client.driver.open(T.STATS, ends=True)
        await both.client.driver.wait_closed()
        assert both.client.losses[0].code is ErrorCode.WRONG_PROOF
        assert isinstance(both.server.losses[0], ProtocolBroken)
        assert len(both.server.losses) == len(both.client.losses) == 1


async def test_break_off_says_what_to_raise() -> None:
    async with pair() as both:
        _, theirs = await both.ask()
        assert isinstance(theirs.break_off(BadPayload("no")), ProtocolBroken)


async def test_what_no_peer_may_send_is_answered_with_its_code() -> None:
    server, bare = await server_alone()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, frame(T.HELLO, payload=b"x") + frame(T.HELLO, payload=b"x", sequence=5))
    told = await loop.sock_recv(bare, 4096)
    error = b"".join(encode_message(Error(ErrorCode.BAD_SEQUENCE, str(server.losses[0].error))))
    assert told == frame(T.ERROR, payload=error, ends=True)
    assert server.control[0].type is T.HELLO  # what came before the fault counts
    assert await loop.sock_recv(bare, 4096) == b""
    bare.close()
    await server.driver.wait_closed()


async def test_an_end_within_a_frame_is_told_and_a_cut_like_one_between_frames() -> None:
    for sent in (b"\x01\x10", b""):
        server, bare = await server_alone()
        bare.sendall(sent)
        bare.shutdown(socket.SHUT_WR)
        await server.driver.wait_closed()
        assert type(server.losses[0]) is ConnectionLost
        told = bare.recv(4096)
        assert bool(told) is bool(sent)
        bare.close()


async def test_a_peer_that_never_ends_is_closed_upon_in_time() -> None:
    server, bare = await server_alone()
    started = asyncio.get_running_loop().time()
    calls = _timers()
    server.driver.abandon(ErrorCode.BUSY)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    timer = (_timers() - calls).pop()
    assert 0 < timer.when() - started <= CLOSING_SECONDS + 1
    assert bare.fileno() > 0 and not server.driver._ending.is_closed
    timer._run()  # as the loop will when it is time
    timer.cancel()
    await server.driver.wait_closed()
    assert bare.recv(4096) and bare.recv(4096) == b""
    bare.close()


def _timers() -> set[asyncio.TimerHandle]:
    loop: Any = asyncio.get_running_loop()
    return {timer for timer in loop._scheduled if not timer.cancelled()}


async def test_a_half_closed_client_still_hears_the_last_words() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        both.client.driver.goodbye(GoodbyeReason.FINISHED)
        await both.client.driver.drain()
        both.client.driver._line._socket.shutdown(socket.SHUT_WR)
        await until(lambda: both.server.driver._ending._peer_ended)
        assert both.server.losses == [] and both.server.driver.may_talk
        theirs.fail(ErrorCode.CANCELLED)
        with pytest.raises(Refused):
            await ours.receive()
        both.server.driver.goodbye(GoodbyeReason.FINISHED)
        await both.client.driver.wait_closed()
        await both.server.driver.wait_closed()
        assert both.client.losses == both.server.losses == [None]


async def test_a_half_closed_client_that_works_is_cut() -> None:
    async with pair() as both:
        _, theirs = await both.ask()
        both.client.driver._line._socket.shutdown(socket.SHUT_WR)
        await theirs.wait_over()
        assert isinstance(both.server.losses[0], ConnectionLost)
        await both.client.driver.wait_closed()


async def test_a_peer_that_resets_loses_what_it_said_last_never() -> None:
    """The peer says why and is gone while this side still writes: its words are heard, not the failure to write."""
    async with pair(lines=tuple(SocketLine(each) for each in connected())) as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        theirs.widen()
        await asyncio.sleep(0)
        both.server.driver.abandon(ErrorCode.NO_ROOM, "full")
        both.server.driver.close()
        with pytest.raises(ConnectionLost) as told:
            while True:
                await ours.send(T.DATA, bytes(MIB))
                await ours.drain()
        await both.client.driver.wait_closed()
        assert told.value.code is ErrorCode.NO_ROOM


async def test_a_peer_that_does_not_read_makes_us_hold_no_more_than_the_limits() -> None:
    limits = Limits(stream_queue=2 * MIB, connection_queue=4 * MIB)
    one, other = (CountingLine(each) for each in socket.socketpair())
    async with pair(limits, lines=(one, other)) as both:
        streams = [await both.ask() for _ in range(8)]
        for ours, _ in streams:
            ours.widen()
        await both.client.driver.drain()
        both.client.driver._line._stop_reading()
        queued = 0
        for _, theirs in streams:
            refused = 0
            while refused < 10:
                try:
                    theirs.send_nowait(T.TOKENS, bytes(64 << 10))
                    queued += 64 << 10
                    refused = 0
                except QueueFull:
                    refused += 1
                    await asyncio.sleep(0)
        outbox = both.server.driver.connection._books.outbox
        assert outbox._queued <= 4 * MIB + len(streams) * ((64 << 10) + 256)  # each may have one frame in any case
        assert queued > 4 * MIB
        assert other.kept_most <= WRITE_BYTES + MIB
        waiting = asyncio.ensure_future(streams[0][1].send(T.TOKENS, bytes(MIB)))
        await asyncio.sleep(0)
        assert not waiting.done()
        both.server.driver.close()
        with pytest.raises(ConnectionLost):
            await waiting


async def test_pings_whose_answers_are_not_read_end_the_connection() -> None:
    server, bare = await server_alone()
    bare.sendall(frame(T.HELLO, payload=b"hello"))
    await server.greeted.wait()
    await server.driver.send_control(T.WELCOME, b"", ends=True)
    sequence = 1
    while not server.losses:
        block = b"".join(frame(T.PING, payload=bytes(4000), sequence=sequence + each) for each in range(16))
        sequence += 16
        await asyncio.get_running_loop().sock_sendall(bare, block)
    assert server.losses[0].code is ErrorCode.TOO_LARGE
    bare.close()
    await server.driver.wait_closed()


async def test_one_turn_of_a_busy_connection_is_bounded() -> None:
    """Everybody else gets a turn while one peer sends without end."""
    async with pair() as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        room = bytearray(64 * MIB)
        theirs.receive_into(memoryview(room))
        chunk = memoryview(bytes(MIB))
        received: list[int] = []

        def look() -> None:
            received.append(both.server.driver.received_bytes)
            if not theirs.over and received[-1] < 60 * MIB:
                asyncio.get_running_loop().call_soon(look)

        look()

        async def take() -> None:
            while not (await theirs.receive()).ends:
                pass

        taking = asyncio.ensure_future(take())
        for number in range(64):
            await ours.send(T.DATA, chunk, ends=number == 63)
        await taking
        steps = [after - before for before, after in pairwise(received)]
        assert max(steps) <= 3 * MIB and len(steps) > 20


async def test_a_thousand_connections_leave_nothing() -> None:
    for number in range(250):
        client, server = End(Role.CLIENT), End(Role.SERVER)
        ours, theirs = socket.socketpair()
        client.driver.attach(SocketLine(ours))
        server.driver.attach(SocketLine(theirs))
        both = Pair(client, server)
        if number % 4:
            await both.greet()
        if number % 4 > 1:
            await both.ask(T.WRITE, ends=False)
        first, second = (client, server) if number % 2 else (server, client)
        first.driver.close()
        await second.driver.wait_closed()
        assert len(second.losses) == len(first.losses) == 1
        del client, server, both, first, second
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Driver]
    assert not _timers()
