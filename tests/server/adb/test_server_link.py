"""The host protocol against servers that misbehave; the real one is met in test_tracker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.adb.plan import Forward
from server.adb.server_link import ServerLink, parse_forwards
from server.adb.states import Transport
from server.errors import AdbError, AdbRefused, AdbServerGone

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(*pieces: bytes, hold: bool = False) -> AsyncIterator[tuple[ServerLink, list[bytes]]]:
    """A server that takes a question and says these bytes, then ends the connection or holds it."""
    asked: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int(await reader.readexactly(4), 16)
        asked.append(await reader.readexactly(size))
        for piece in pieces:
            writer.write(piece)
        if hold:
            await ended.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield ServerLink(port=server.sockets[0].getsockname()[1], patience=0.2 if hold else 60.0), asked
        ended.set()
        await asyncio.sleep(0.01)


async def test_questions_are_framed_and_answers_read() -> None:
    async with answering(b"OKAY0004", b"0029") as (link, asked):
        assert await link.version() == 41
    assert asked == [b"host:version"]


async def test_a_forward_never_takes_a_port_from_another() -> None:
    async with answering(b"OKAYOKAY") as (link, asked):
        await link.create(Forward("S1", 11500))
    assert asked == [b"host-serial:S1:forward:norebind:tcp:11500;tcp:11434"]


async def test_a_refusal_is_the_servers_own_sentence() -> None:
    async with answering(b"OKAYFAIL000fcannot bind this") as (link, _):
        with pytest.raises(AdbRefused, match="cannot bind"):
            await link.create(Forward("S1", 11500))


@pytest.mark.parametrize(
    "said", [b"", b"OK", b"HTTP/1.1 400 Bad", b"OKAYzzzz", b"OKAY-001", b"OKAY0004zzzz", b"OKAY00ff29"]
)
async def test_whoever_is_no_adb_server_counts_as_none(said: bytes) -> None:
    async with answering(said) as (link, _):
        with pytest.raises(AdbServerGone):
            await link.version()


async def test_a_question_has_an_end_in_time() -> None:
    async with answering(b"OKAY", hold=True) as (link, _):
        with pytest.raises(AdbError, match="no answer within"):
            await link.shell(Transport("S1", "device", number=3), "getprop")


async def test_following_a_server_that_says_nothing_ends() -> None:
    async with answering(hold=True) as (link, _):
        with pytest.raises(AdbServerGone):
            await anext(link.follow())


async def test_nobody_listens(unused_tcp_port: int) -> None:
    with pytest.raises(AdbServerGone, match="no adb server answers"):
        await ServerLink(port=unused_tcp_port).transports()


def test_lines_of_the_list_of_forwards_that_lack_something_are_passed_over() -> None:
    text = (
        "S1 tcp:11500 tcp:11434\ntcp:1 tcp:2\nS2 tcp:1 localabstract:x\nS3 tcp:99999999 tcp:1\n\nS4 tcp:5 tcp:6 more\n"
    )
    assert parse_forwards(text) == (Forward("S1", 11500),)
    named = "adb-S1-a (2)._adb-tls-connect._tcp"
    assert parse_forwards(f"{named} tcp:11500 tcp:11434\n10.0.0.7:5555 tcp:1 tcp:2") == (
        Forward(named, 11500), Forward("10.0.0.7:5555", 1, 2),
    )  # fmt: skip


@pytest.mark.parametrize("said", [b"OKAY0003yes", b"OKAYOKAY0003yes", b"OKAYFAIL0003yes", b"FAIL0003yes"])
async def test_what_comes_of_pairing_is_the_servers_words(said: bytes) -> None:
    async with answering(said) as (link, asked):
        assert await link.pair("192.168.1.7:37123", "123456") == "yes"
    assert asked == [b"host:pair:123456:192.168.1.7:37123"]


async def test_a_code_is_in_no_error() -> None:
    async with answering(b"OKAY", hold=True) as (link, _):
        with pytest.raises(AdbError, match=r"to 'pair'") as problem:
            await link.pair("192.168.1.7:37123", "123456")
    assert "123456" not in problem.value.message
