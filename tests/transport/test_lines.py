"""Plain lines: what is written arrives, in few calls and bounded turns; how fast they drain; how they end."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from tests.fakes.manual_clock import ManualClock
from tests.transport.feeds import Feed
from tests.transport.pair import connected, until
from transport.lines import FRAME_BYTES, IOV_MOST, SMALL_BYTES, TURN_BYTES, SocketLine, joined

MIB = 1 << 20


def started(*, room: int = 1 << 16, clock: ManualClock | None = None) -> tuple[Any, Feed, socket.socket]:
    """A line, its feed, and the bare other end."""
    bare, other = connected()
    bare.setblocking(False)
    line, feed = SocketLine(other, clock.clock.monotonic if clock else lambda: 0.0), Feed(room)
    line.start(feed)
    return line, feed, bare


def drain(bare: socket.socket, most: int = 1 << 30) -> bytes:
    found = bytearray()
    while len(found) < most:
        try:
            data = bare.recv(min(MIB, most - len(found)))
        except BlockingIOError:
            break
        if not data:
            break
        found += data
    return bytes(found)


def fill(line: SocketLine) -> int:
    """Until the socket is full; returns what was written."""
    written = 0
    while True:
        written += MIB
        if not line.write([bytes(MIB)]):
            return written


async def test_buffers_are_gathered() -> None:
    line, _, bare = started()
    assert line.write([b"one ", bytearray(b"two "), memoryview(b"three")])
    assert drain(bare) == b"one two three"
    assert line.sent_bytes == 13
    line.close()
    bare.close()


async def test_more_buffers_than_a_write_takes() -> None:
    line, _, bare = started()
    buffers = [os.urandom(3) for _ in range(5 * IOV_MOST)]
    assert line.write(list(buffers))
    assert drain(bare) == b"".join(buffers)
    large = [os.urandom(SMALL_BYTES + 1) for _ in range(IOV_MOST + 7)]
    line.write(list(large))
    found = b""
    while line.is_full:
        found += drain(bare)
        line._write_kept()
    assert found + drain(bare) == b"".join(large)
    line.close()
    bare.close()


def test_runs_of_small_buffers_are_joined_and_large_ones_are_the_same() -> None:
    large = bytes(100)
    found = joined([b"a", b"bc", large, b"d", b"", b"e", large], 99)
    assert found == [b"abc", large, b"de", large]
    assert found[1] is large and found[3] is large


async def test_what_does_not_fit_is_kept_uncopied_and_goes_later() -> None:
    line, feed, bare = started()
    data = os.urandom(16 * MIB)
    assert not line.write([b"head", data])
    assert line.is_full
    assert line._kept[-1].obj is data
    found = bytearray()
    while not feed.told.count("ready"):
        found += drain(bare)
        await asyncio.sleep(0)
    assert bytes(found + drain(bare)) == b"head" + data
    assert not line.is_full and line.write([b"more"])
    line.close()
    bare.close()


async def test_what_arrives_is_received_and_counted() -> None:
    line, feed, bare = started(room=10)
    bare.sendall(b"x" * 25)
    await until(lambda: len(feed.received) == 25)
    assert line.received_bytes == 25
    assert feed.told[-1] == "turn"
    line.close()
    bare.close()


@pytest.mark.parametrize(("frames", "most"), [(0, TURN_BYTES), (4, TURN_BYTES // (4 * FRAME_BYTES) * 4096)])
async def test_a_turn_reads_a_bounded_amount(frames: int, most: int) -> None:
    line, feed, bare = started(room=4096)
    feed.frames_per_read = frames
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    try:
        while True:
            bare.send(bytes(MIB))
    except BlockingIOError:
        pass
    line._read()
    assert len(feed.received) <= most + 4096
    assert len(feed.received) == most or not frames
    line.close()
    bare.close()


async def test_a_full_line_tells_how_fast_it_drains() -> None:
    clock = ManualClock()
    line, feed, bare = started(clock=clock)
    assert not line.write([bytes(64 * MIB)])
    assert feed.measured == []
    sent = line.sent_bytes
    while not feed.measured:
        clock.now += 0.5
        drain(bare, 256 << 10)
        line._write_kept()
        assert line.is_full
    drained = line.sent_bytes - sent
    assert feed.measured == [(drained, clock.now)]
    clock.now += 0.001
    drain(bare, 256 << 10)
    line._write_kept()
    assert len(feed.measured) == 1  # too short a time to tell anything
    line.close()
    bare.close()


async def test_a_line_that_was_not_full_all_the_time_measures_nothing() -> None:
    clock = ManualClock()
    line, feed, bare = started(clock=clock)
    fill(line)
    while line.is_full:
        drain(bare)
        clock.now = 0.0
        line._write_kept()
    feed.measured.clear()
    clock.now = 100.0
    fill(line)
    assert feed.measured == []
    line.close()
    bare.close()


async def test_the_end_of_the_peer() -> None:
    line, feed, bare = started()
    bare.sendall(b"last")
    bare.shutdown(socket.SHUT_WR)
    await until(lambda: "ended" in feed.told)
    assert feed.received == b"last"
    assert line.write([b"still"])
    assert drain(bare) == b"still"
    line.close()
    line.close()
    assert not line.write([b"x"])
    bare.close()


async def test_a_reset_is_told_once() -> None:
    line, feed, bare = started()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    bare.close()
    await until(lambda: feed.errors)
    assert isinstance(feed.errors[0], ConnectionResetError)
    assert feed.told.count("lost") == 1 and line.is_full
    line.close()


async def test_what_the_peer_said_is_read_though_writing_fails() -> None:
    ours, bare = socket.socketpair()
    line, feed = SocketLine(ours), Feed()
    line.start(feed)
    bare.sendall(b"why")
    bare.close()
    assert not line.write([b"x"])
    assert line.is_full and not line._kept
    await until(lambda: feed.errors)
    assert feed.received == b"why"
    line.close()


async def test_writing_that_fails_after_the_peers_end_is_told() -> None:
    ours, bare = socket.socketpair()
    line, feed = SocketLine(ours), Feed()
    line.start(feed)
    bare.shutdown(socket.SHUT_WR)
    await until(lambda: "ended" in feed.told)
    bare.close()
    assert not line.write([b"x"])
    await until(lambda: feed.errors)
    assert isinstance(feed.errors[0], BrokenPipeError)
    line.close()


async def test_after_the_end_what_comes_is_thrown_away() -> None:
    line, feed, bare = started()
    line.end()
    assert drain(bare) == b""
    bare.sendall(b"x" * 100_000)
    bare.close()
    await until(lambda: "ended" in feed.told)
    assert feed.received == b""
    line.close()


async def test_ending_towards_nobody_is_harmless() -> None:
    line, feed, bare = started()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    bare.close()
    line.end()
    await until(lambda: "ended" in feed.told)
    line.close()
