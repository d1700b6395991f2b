"""One connection: the exchange at every cut, its limits, and what the other side may do. No sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from server.backends.connection import MAX_HEAD_BYTES, PAUSE_ABOVE_BYTES, Connection
from server.errors import NodeBroken, NodeStalled, NodeUnreachable
from tests.fakes.clock_loop import on_clock_loop

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
BODY = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


class FakeTransport(asyncio.Transport):
    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = b""
        self.closed = False
        self.reading = True
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Line:
    def __init__(self, begun: bool = True) -> None:
        self.completed: list[Connection] = []
        self.lost: list[Connection] = []
        self.connection = Connection("10.0.0.1:1", self.completed.append, self.lost.append)
        self.transport = FakeTransport(self.connection)
        if begun:
            self.begin()

    def begin(self, seconds: float = 60.0) -> None:
        loop = asyncio.get_running_loop()
        self.connection.expect("first_token", seconds, loop.time() + 60.0)
        self.connection.begin(b"GET / HTTP/1.1\r\n\r\n")

    def receive(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    def end(self, problem: Exception | None = None) -> None:
        self.transport.closed = True
        self.connection.connection_lost(problem)


async def body_of(connection: Connection) -> bytes:
    found = b""
    while piece := await connection.read():
        found += piece
    return found


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise], ids=["whole", "byte by byte"])
async def test_head_and_body(cut: Callable[[bytes], list[bytes]]):
    line = Line()
    line.receive(*cut(HEAD + BODY))
    await line.connection.wait_for_head()
    assert (line.connection.status, line.connection.headers[b"x-a"]) == (200, b"1")
    assert await body_of(line.connection) == b"abcde"
    assert line.connection.reusable and line.completed == [line.connection]


async def test_a_reader_gets_all_that_has_come_as_one():
    line = Line()
    line.receive(HEAD, b"3\r\nabc\r\n", b"2\r\nde\r\n")
    assert await line.connection.read() == b"abcde"


async def test_a_reader_that_waits_is_woken_by_the_next_piece():
    line = Line()
    line.receive(HEAD)
    reading = asyncio.create_task(line.connection.read())
    await asyncio.sleep(0)
    line.receive(b"3\r\nabc\r\n")
    assert await reading == b"abc"


async def test_interim_answers_are_passed_over():
    line = Line()
    line.receive(b"HTTP/1.1 100 Continue\r\nX-B: 2\r\n\r\n", HEAD + BODY)
    await line.connection.wait_for_head()
    assert line.connection.status == 200 and b"x-b" not in line.connection.headers
    assert await body_of(line.connection) == b"abcde"


async def test_a_body_without_a_length_ends_with_the_connection():
    line = Line()
    line.receive(b"HTTP/1.0 200 OK\r\n\r\nab", b"cd")
    line.end()
    assert await body_of(line.connection) == b"abcd"
    assert not line.connection.reusable


async def test_connection_close_is_heeded():
    line = Line()
    line.receive(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
    assert await body_of(line.connection) == b"x"
    assert line.connection.complete and not line.connection.reusable


async def test_a_second_exchange_on_the_same_connection():
    line = Line()
    line.receive(HEAD + BODY)
    await body_of(line.connection)
    line.begin()
    assert line.transport.sent.count(b"GET") == 2
    line.receive(b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx")
    await line.connection.wait_for_head()
    assert line.connection.status == 404 and line.connection.headers == {b"content-length": b"1"}


async def test_what_came_before_a_cut_is_read_before_the_error():
    line = Line()
    line.receive(HEAD, b"3\r\nabc\r\n")
    line.end()
    assert await line.connection.read() == b"abc"
    with pytest.raises(NodeBroken, match="cut"):
        await line.connection.read()


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nX-"])
async def test_lost_before_the_head_is_unreachable(before: bytes):
    line = Line()
    if before:
        line.receive(before)
    line.end(ConnectionResetError("reset by peer"))
    with pytest.raises(NodeUnreachable, match="reset by peer") as caught:
        await line.connection.wait_for_head()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert line.connection.answered is bool(before)


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/9.9.9 what\r\n\r\n", b"\0\1\2\3", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_http_is_broken_and_hung_up_on(garbage: bytes):
    line = Line()
    line.receive(garbage)
    with pytest.raises(NodeBroken):
        await line.connection.wait_for_head()
    assert line.transport.closed


async def test_a_broken_chunk_is_broken():
    line = Line()
    line.receive(HEAD, b"3\r\nabc\r\n", b"zz\r\n")
    assert await line.connection.read() == b"abc"
    with pytest.raises(NodeBroken):
        await line.connection.read()


async def test_headers_without_end_are_broken():
    line = Line()
    line.receive(
        b"HTTP/1.1 200 OK\r\n", *[b"X-%d: y\r\n" % number + b"z: " + b"y" * 1000 + b"\r\n" for number in range(70)]
    )
    with pytest.raises(NodeBroken, match=str(MAX_HEAD_BYTES)):
        await line.connection.wait_for_head()


async def test_unasked_bytes_close_an_idle_connection():
    line = Line()
    line.receive(HEAD + BODY)
    line.receive(b"HTTP/1.1 408 Timeout\r\n\r\n")
    assert line.transport.closed and not line.connection.reusable


async def test_more_than_the_limit_is_broken():
    line = Line()
    line.receive(HEAD + BODY)
    with pytest.raises(NodeBroken, match="more than 4 bytes"):
        await line.connection.read_all(4)


async def test_a_slow_reader_stops_the_node_instead_of_filling_memory():
    line = Line()
    line.receive(HEAD)
    chunk = b"x" * 65536
    for _ in range(PAUSE_ABOVE_BYTES // 65536 + 1):
        line.receive(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    assert not line.transport.reading
    await line.connection.read()
    assert line.transport.reading


async def test_silence_past_the_limit_is_a_stall_of_the_phase():
    line = Line(begun=False)
    line.begin(seconds=0.01)
    with pytest.raises(NodeStalled) as caught:
        await line.connection.wait_for_head()
    assert caught.value.phase == "first_token" and line.transport.closed


async def test_past_the_end_of_all_it_is_a_stall_of_the_whole():
    line = Line()
    line.connection.expect("between_tokens", 60.0, asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(NodeStalled) as caught:
        await line.connection.wait_for_head()
    assert caught.value.phase == "total"


@on_clock_loop
async def test_a_later_deadline_counts_and_an_earlier_one_too():
    line = Line(begun=False)
    line.begin(seconds=0.02)
    waiting = asyncio.create_task(line.connection.read())
    await asyncio.sleep(0)
    line.receive(HEAD, b"3\r\nabc\r\n")
    assert await waiting == b"abc"
    loop = asyncio.get_running_loop()
    line.connection.expect("between_tokens", 30.0, loop.time() + 60)
    waiting = asyncio.create_task(line.connection.read())
    await asyncio.sleep(0.05)  # the first deadline passes and must not fire
    assert not waiting.done()
    line.receive(b"2\r\nde\r\n")
    assert await waiting == b"de"
    line.connection.expect("between_tokens", 0.01, loop.time() + 60)
    with pytest.raises(NodeStalled) as caught:
        await line.connection.read()
    assert caught.value.phase == "between_tokens"


@on_clock_loop
async def test_time_in_which_nobody_reads_does_not_count():
    line = Line(begun=False)
    line.begin(seconds=0.01)
    waiting = asyncio.create_task(line.connection.read())
    await asyncio.sleep(0)
    line.receive(HEAD, b"3\r\nabc\r\n")
    assert await waiting == b"abc"
    await asyncio.sleep(0.03)  # the reader is busy elsewhere; the timer fires meanwhile
    assert not line.transport.closed
    line.receive(b"2\r\nde\r\n")
    assert await line.connection.read() == b"de"


async def test_a_cancelled_reader_leaves_the_connection_usable_for_its_owner():
    line = Line()
    waiting = asyncio.create_task(line.connection.read())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    line.receive(HEAD, b"3\r\nabc\r\n")
    assert await line.connection.read() == b"abc"


async def test_the_owner_hears_of_the_loss_once():
    line = Line()
    line.connection.abort()
    line.connection.abort()
    await asyncio.sleep(0)
    assert line.lost == [line.connection] and not line.connection.usable
    line.connection.begin(b"GET")
    with pytest.raises(NodeUnreachable):
        await line.connection.wait_for_head()
